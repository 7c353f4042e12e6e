//! The engine of `cpu` with a real model, which dies on command: it has computed the vectors of a call and has
//! written half of them when it does.
#![expect(missing_debug_implementations, reason = "a test plugin")]
use magray_embed_cpu::{CpuEmbedder, CpuOptions, WantedPrecision};
use magray_plugin_api::{
    CallContext, CreateEmbedder, DeviceReport, Embedder, EmbedderInfo, Error, ErrorCode, Host, Result, Role,
};
use serde::Deserialize;
use std::{
    fs::{self, File, OpenOptions},
    io::Write as _,
    path::PathBuf,
    sync::Mutex,
    time::Duration,
};

magray_plugin_api::export_plugin! {
    id: "mortal",
    summary: "the engine of cpu, which dies on request",
    embedders: { "mortal" => Mortal },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Options {
    /// Folder of the model.
    model: String,
    /// A file that says how to die, for as long as it is there: `panic`, `hang` (until the file is gone), `oom`, `nan`.
    control: PathBuf,
    /// A file that gets a line for each text whose vector was handed out whole.
    log: PathBuf,
}

pub struct Mortal {
    engine: CpuEmbedder,
    control: PathBuf,
    log: Mutex<File>,
}

impl CreateEmbedder for Mortal {
    type Options = Options;
    const OPTIONS_SCHEMA: &'static str = r#"{"type":"object","properties":{"model":{"type":"string"},
"control":{"type":"string"},"log":{"type":"string"}}}"#;

    fn create(options: Options, host: &'static dyn Host) -> Result<Self> {
        let Options { model, control, log } = options;
        let cpu = CpuOptions { model, precision: WantedPrecision::F32, ..CpuOptions::default() };
        let log = OpenOptions::new().append(true).create(true).open(log);
        let log = log.map_err(|error| Error::from_source(ErrorCode::IO, &error))?;
        Ok(Self { engine: CpuEmbedder::create(cpu, host)?, control, log: Mutex::new(log) })
    }
}

impl Mortal {
    fn command(&self) -> String {
        fs::read_to_string(&self.control).unwrap_or_default()
    }
}

impl Embedder for Mortal {
    fn info(&self) -> &EmbedderInfo {
        self.engine.info()
    }

    fn device(&self) -> DeviceReport {
        self.engine.device()
    }

    fn count_tokens(&self, texts: &[&str], out: &mut [u32]) -> Result<()> {
        self.engine.count_tokens(texts, out)
    }

    fn embed(&self, cx: &dyn CallContext, texts: &[&str], role: Role, out: &mut [f32]) -> Result<()> {
        let mut vectors = vec![0.0; out.len()];
        self.engine.embed(cx, texts, role, &mut vectors)?;
        let half = out.len() / 2;
        out[..half].copy_from_slice(&vectors[..half]);
        match self.command().as_str() {
            "panic" => panic!("asked to panic"),
            "hang" => {
                while self.command() == "hang" {
                    std::thread::sleep(Duration::from_millis(2));
                }
            }
            "oom" => return Err(Error::new(ErrorCode::OUT_OF_MEMORY, "asked to run out of memory")),
            "nan" => {
                out[half..].fill(f32::NAN);
                return Ok(());
            }
            _ => {}
        }
        out[half..].copy_from_slice(&vectors[half..]);
        let lines: String = texts.iter().flat_map(|text| [text, "\n"]).collect();
        let mut log = self.log.lock().map_err(|_| Error::new(ErrorCode::INTERNAL, "the log is poisoned"))?;
        log.write_all(lines.as_bytes()).map_err(|error| Error::from_source(ErrorCode::IO, &error))?;
        Ok(())
    }
}
