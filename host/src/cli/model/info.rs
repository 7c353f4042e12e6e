use super::{ModelJson, folder_in_use, source};
use crate::{
    cli::{
        Failure, Outcome,
        terminal::{BOLD, CYAN, DIM, GREEN, Terminal},
        view,
    },
    engine::Setup,
    models::Models,
};
use clap::Args;
use indicatif::DecimalBytes;
use magray_model::{Architecture, ManifestFile, ModelFolder};
use serde::Serialize;

/// Show a model whole: network, pooling, prefixes, space, files
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  magray model info all-MiniLM-L6-v2
  magray model info all-MiniLM-L6-v2 --json")]
pub(in crate::cli) struct Info {
    /// The model
    #[arg(value_name = "NAME")]
    name: String,
}

#[derive(Serialize)]
struct InfoJson<'a> {
    #[serde(flatten)]
    model: ModelJson<'a>,
    spec: Option<&'a magray_model::Spec>,
    space: Option<&'a str>,
    weights: Option<&'a [String]>,
    onnx: Option<&'a str>,
    files: &'a [ManifestFile],
}

impl Info {
    pub(super) fn run(self, terminal: &Terminal, setup: &Setup, models: &Models) -> Result<Outcome, Failure> {
        let model = models.get(&self.name)?;
        let json = ModelJson::new(&model, folder_in_use(setup, models).as_ref());
        let folder = model.folder.as_ref().ok();
        let space = space(terminal, folder);
        let files = model.manifest.as_ref().map_or(&[][..], |manifest| &manifest.files);
        let onnx = folder.and_then(|folder| folder.onnx.as_deref());
        let weights = folder.map(|folder| folder.weights.paths());
        if terminal.json {
            let spec = folder.map(|folder| &folder.spec);
            terminal.print_json(&InfoJson {
                model: json,
                spec,
                space: space.as_deref(),
                weights,
                onnx,
                files,
            })?;
            return Ok(Outcome::Done);
        }
        let used = if json.in_use { format!("  {GREEN}in use{GREEN:#}") } else { String::new() };
        terminal.print(format_args!("{BOLD}{}{BOLD:#}{used}", model.name))?;
        let mut lines = vec![("folder", model.dir.display().to_string())];
        lines.push(("source", source(model.manifest.as_ref())));
        lines.extend(json.refusal.map(|refusal| ("refusal", view::whole(refusal))));
        lines.extend(json.architecture.map(|architecture| ("network", architecture)));
        lines.extend(json.dim.map(|dim| ("vectors", format!("{dim} wide"))));
        lines.extend(json.max_tokens.map(|most| ("length", format!("{most} tokens at most"))));
        if let Some(ModelFolder { spec, .. }) = folder {
            let pooling = serde_json::to_value(spec.pooling).unwrap_or_default();
            lines.push(("pooling", pooling.as_str().unwrap_or_default().to_owned()));
            lines.push(("queries", format!("{:?} goes before them", spec.prefixes.query)));
            lines.push(("passages", format!("{:?} goes before them", spec.prefixes.passage)));
        }
        lines.extend(weights.map(|weights| ("weights", weights.join(", "))));
        lines.extend(onnx.map(|onnx| ("ONNX", onnx.to_owned())));
        lines.extend(space.map(|space| ("space", space)));
        for (what, is) in lines {
            terminal.print(format_args!("  {what:<9} {is}"))?;
        }
        for ManifestFile { path, size, sha256, .. } in files {
            terminal.print(format_args!(
                "  {CYAN}{path}{CYAN:#}  {}  {DIM}sha256 {sha256}{DIM:#}",
                DecimalBytes(*size)
            ))?;
        }
        Ok(Outcome::Done)
    }
}

/// The digest of the model's space, where it is one of those that `magray-model` speaks for.
fn space(terminal: &Terminal, folder: Option<&ModelFolder>) -> Option<String> {
    let folder = folder.filter(|folder| folder.spec.architecture != Architecture::Static)?;
    match folder.space() {
        Ok(space) => Some(space.iter().map(|byte| format!("{byte:02x}")).collect()),
        Err(error) => {
            terminal.warn(error.message());
            None
        }
    }
}
