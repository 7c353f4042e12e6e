//! `config.json`: which network it is, and its sizes.
use crate::{corrupt, unsupported};
use magray_plugin_api::Result;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// A network that a backend may know how to run.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Architecture {
    /// An encoder of the BERT family: BERT (MiniLM, BGE, E5, GTE, arctic), XLM-R, MPNet.
    Bert(Bert),
    /// A causal decoder of the Qwen3 family (Qwen3-Embedding).
    Qwen3(Qwen3),
    /// One row of weights a token (model2vec); only the backend `cpu` runs it.
    Static,
}

/// Sizes of an encoder of the BERT family.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Bert {
    /// Width of the hidden states.
    pub hidden: usize,
    /// Layers.
    pub layers: usize,
    /// Attention heads; `hidden` is a multiple of them.
    pub heads: usize,
    /// Width of the feed-forward network.
    pub intermediate: usize,
    /// Rows of the table of word embeddings.
    pub vocab: usize,
    /// Rows of the table of position embeddings.
    pub positions: usize,
    /// Position of the first token: 0 for BERT, `pad_token_id + 1` for XLM-R and MPNet.
    pub first_position: usize,
    /// Whether row 0 of a table of token types is added (not in MPNet).
    pub token_types: bool,
    /// Added to the variance in each layer norm.
    pub layer_norm_eps: f32,
    /// Between the two products of the feed-forward network.
    pub activation: Activation,
    /// Buckets of the bias that MPNet adds to the attention scores by relative position (shared by
    /// all layers); none elsewhere. T5's scheme, bidirectional, maximal distance 128.
    pub relative_buckets: Option<usize>,
}

/// Sizes of a Qwen3 decoder.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Qwen3 {
    /// Width of the hidden states.
    pub hidden: usize,
    /// Layers.
    pub layers: usize,
    /// Heads of the queries.
    pub heads: usize,
    /// Heads of keys and values; `heads` is a multiple of them.
    pub kv_heads: usize,
    /// Width of a head. `heads * head_dim` may differ from `hidden`.
    pub head_dim: usize,
    /// Width of the gated feed-forward network.
    pub intermediate: usize,
    /// Rows of the table of word embeddings.
    pub vocab: usize,
    /// Longest sequence that it was made for.
    pub positions: usize,
    /// Base of the rotary position embedding.
    pub rope_theta: f64,
    /// Added to the mean square in each RMS norm.
    pub rms_norm_eps: f32,
}

/// The activation of a feed-forward network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// GELU by the error function.
    Gelu,
    /// GELU by its tanh approximation.
    GeluTanh,
    /// `max(x, 0)`
    Relu,
}

impl Architecture {
    /// Width of the states before pooling; `None` for static models, whose weights say it.
    pub fn hidden(&self) -> Option<usize> {
        match self {
            Self::Bert(bert) => Some(bert.hidden),
            Self::Qwen3(qwen) => Some(qwen.hidden),
            Self::Static => None,
        }
    }

    /// The longest sequence that it takes, special tokens included.
    pub(crate) fn max_positions(&self) -> usize {
        match self {
            Self::Bert(bert) => bert.positions - bert.first_position,
            Self::Qwen3(qwen) => qwen.positions,
            Self::Static => usize::MAX,
        }
    }

    /// A name for people, such as `bert 6x384`.
    pub fn label(&self) -> String {
        match self {
            Self::Bert(bert) if bert.relative_buckets.is_some() => {
                format!("mpnet {}x{}", bert.layers, bert.hidden)
            }
            Self::Bert(bert) if bert.first_position > 0 => format!("xlm-r {}x{}", bert.layers, bert.hidden),
            Self::Bert(bert) => format!("bert {}x{}", bert.layers, bert.hidden),
            Self::Qwen3(qwen) => format!("qwen3 {}x{}", qwen.layers, qwen.hidden),
            Self::Static => "static".to_owned(),
        }
    }

    /// Reads a `config.json`.
    ///
    /// # Errors
    /// `UNSUPPORTED` for another network, `CORRUPT_DATA` for sizes that cannot be.
    pub fn from_config(config: &Value) -> Result<Self> {
        let architecture = match config["model_type"].as_str() {
            Some("bert") => Self::Bert(bert(config, 0, true, None)?),
            Some("xlm-roberta" | "roberta" | "camembert") => {
                Self::Bert(bert(config, pad(config)? + 1, true, None)?)
            }
            Some("mpnet") => {
                let buckets = config["relative_attention_num_buckets"].as_u64().unwrap_or(32);
                Self::Bert(bert(config, pad(config)? + 1, false, Some(buckets as usize))?)
            }
            Some("qwen3") => Self::Qwen3(qwen3(config)?),
            Some("model2vec") => Self::Static,
            _ => {
                return Err(unsupported(format!(
                    "config.json has the model_type {}; bert, xlm-roberta, roberta, camembert, mpnet, qwen3 and \
                     model2vec are known",
                    config["model_type"]
                )));
            }
        };
        architecture.check()?;
        Ok(architecture)
    }

    fn check(&self) -> Result<()> {
        let sane = match self {
            Self::Bert(bert) => {
                bert.hidden > 0
                    && bert.heads > 0
                    && bert.hidden.is_multiple_of(bert.heads)
                    && bert.intermediate > 0
                    && bert.positions > bert.first_position
                    && bert.layer_norm_eps >= 0.0
            }
            Self::Qwen3(qwen) => {
                qwen.hidden > 0
                    && qwen.kv_heads > 0
                    && qwen.heads.is_multiple_of(qwen.kv_heads)
                    && qwen.heads > 0
                    && qwen.head_dim > 0
                    && qwen.head_dim.is_multiple_of(2)
                    && qwen.intermediate > 0
                    && qwen.positions > 0
                    && qwen.rope_theta > 0.0
                    && qwen.rms_norm_eps >= 0.0
            }
            Self::Static => true,
        };
        // Far beyond every model there is, and far below what could overflow.
        let sizes = match self {
            Self::Bert(b) => vec![b.hidden, b.layers, b.intermediate, b.vocab, b.positions],
            Self::Qwen3(q) => {
                vec![q.hidden, q.layers, q.intermediate, q.vocab, q.positions, q.heads, q.head_dim]
            }
            Self::Static => vec![],
        };
        if !sane || sizes.iter().any(|&size| size > 1 << 24) {
            return Err(corrupt(format!("config.json has sizes that cannot be: {self:?}")));
        }
        Ok(())
    }
}

/// The keys of `config.json` that BERT, XLM-R and MPNet share.
#[derive(Deserialize)]
struct BertConfig {
    hidden_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    intermediate_size: usize,
    vocab_size: usize,
    max_position_embeddings: usize,
    layer_norm_eps: f32,
    hidden_act: String,
    #[serde(default)]
    position_embedding_type: Option<String>,
    #[serde(default)]
    is_decoder: bool,
}

fn bert(
    config: &Value,
    first_position: usize,
    token_types: bool,
    relative_buckets: Option<usize>,
) -> Result<Bert> {
    let config = BertConfig::deserialize(config).map_err(|error| corrupt(format!("config.json: {error}")))?;
    let activation = match config.hidden_act.as_str() {
        "gelu" => Activation::Gelu,
        "gelu_new" | "gelu_pytorch_tanh" => Activation::GeluTanh,
        "relu" => Activation::Relu,
        other => return Err(unsupported(format!("config.json has the hidden_act '{other}'"))),
    };
    if let Some(other) = config.position_embedding_type.filter(|kind| kind != "absolute") {
        return Err(unsupported(format!("config.json has the position_embedding_type '{other}'")));
    }
    if config.is_decoder {
        return Err(unsupported("config.json says is_decoder"));
    }
    if relative_buckets.is_some_and(|buckets| buckets < 4 || !buckets.is_multiple_of(4) || buckets > 1024) {
        return Err(corrupt("config.json has a relative_attention_num_buckets that cannot be"));
    }
    Ok(Bert {
        hidden: config.hidden_size,
        layers: config.num_hidden_layers,
        heads: config.num_attention_heads,
        intermediate: config.intermediate_size,
        vocab: config.vocab_size,
        positions: config.max_position_embeddings,
        first_position,
        token_types,
        layer_norm_eps: config.layer_norm_eps,
        activation,
        relative_buckets,
    })
}

fn pad(config: &Value) -> Result<usize> {
    match &config["pad_token_id"] {
        // The default of these networks in transformers.
        Value::Null => Ok(1),
        id => id
            .as_u64()
            .filter(|&id| id < 1 << 20)
            .map(|id| id as usize)
            .ok_or_else(|| corrupt(format!("config.json has the pad_token_id {id}"))),
    }
}

#[derive(Deserialize)]
struct Qwen3Config {
    hidden_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: usize,
    head_dim: Option<usize>,
    intermediate_size: usize,
    vocab_size: usize,
    max_position_embeddings: usize,
    rope_theta: Option<f64>,
    /// Where transformers 5 keeps the base.
    rope_parameters: Option<Value>,
    rope_scaling: Option<Value>,
    rms_norm_eps: f32,
    hidden_act: String,
    #[serde(default)]
    attention_bias: bool,
    #[serde(default)]
    use_sliding_window: bool,
}

fn qwen3(config: &Value) -> Result<Qwen3> {
    let config =
        Qwen3Config::deserialize(config).map_err(|error| corrupt(format!("config.json: {error}")))?;
    let parameters = config.rope_parameters.unwrap_or_default();
    let scaled = config.rope_scaling.is_some_and(|scaling| !scaling.is_null())
        || parameters["rope_type"].as_str().is_some_and(|kind| kind != "default");
    for (is, what) in [
        (scaled, "rope_scaling"),
        (config.attention_bias, "attention_bias"),
        (config.use_sliding_window, "use_sliding_window"),
        (config.hidden_act != "silu", "a hidden_act other than silu"),
    ] {
        if is {
            return Err(unsupported(format!("config.json has {what}")));
        }
    }
    Ok(Qwen3 {
        hidden: config.hidden_size,
        layers: config.num_hidden_layers,
        heads: config.num_attention_heads,
        kv_heads: config.num_key_value_heads,
        head_dim: config.head_dim.unwrap_or(config.hidden_size / config.num_attention_heads.max(1)),
        intermediate: config.intermediate_size,
        vocab: config.vocab_size,
        positions: config.max_position_embeddings,
        rope_theta: config.rope_theta.or_else(|| parameters["rope_theta"].as_f64()).unwrap_or(10_000.0),
        rms_norm_eps: config.rms_norm_eps,
    })
}
