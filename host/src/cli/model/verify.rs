use crate::{
    cli::{
        Failure, Outcome,
        terminal::{Terminal, UntilInterrupted},
        view,
    },
    models::{Damage, ModelError, Models, Verified},
};
use clap::Args;
use indicatif::DecimalBytes;
use magray_model::Manifest;
use serde::Serialize;

/// Read every file of models again and compare it with what it was
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  magray model verify
  magray model verify all-MiniLM-L6-v2")]
pub(in crate::cli) struct Verify {
    /// Models [default: all]
    #[arg(value_name = "NAME")]
    names: Vec<String>,
}

#[derive(Serialize)]
struct VerifiedJson<'a> {
    name: &'a str,
    whole: bool,
    files: usize,
    bytes: u64,
    damage: Vec<DamageJson<'a>>,
}

#[derive(Serialize)]
struct DamageJson<'a> {
    file: &'a str,
    reason: &'a str,
}

impl Verify {
    pub(super) fn run(self, terminal: &Terminal, models: &Models) -> Result<Outcome, Failure> {
        let all = self.names.is_empty();
        let names = match all {
            true => models.list()?.into_iter().map(|model| model.name).collect(),
            false => self.names,
        };
        terminal.stop_gently();
        let mut broken = 0;
        for name in &names {
            let verified = {
                let progress = terminal.progress_in_bytes();
                models.verify(&UntilInterrupted, name, &mut |now| progress.show(now))
            };
            let Verified { files, bytes, damage } = match verified {
                Err(error @ ModelError::NoManifest(_)) if all => {
                    terminal.warn(&error.to_string());
                    continue;
                }
                verified => verified?,
            };
            broken += u64::from(!damage.is_empty());
            for Damage { file, reason } in &damage {
                let path = models.dir().join(name).join(file);
                terminal.error(&format!("{}: {reason}", path.display()));
            }
            if terminal.json {
                let parts = damage.iter().map(|Damage { file, reason }| DamageJson { file, reason });
                let (whole, damage) = (damage.is_empty(), parts.collect());
                terminal.print_json(&VerifiedJson { name, whole, files, bytes, damage })?;
            } else if damage.is_empty() {
                let files = view::counted(files as u64, "file");
                terminal.print(format_args!("{name}: {files}, {}, all as they were", DecimalBytes(bytes)))?;
            }
            if !damage.is_empty() {
                terminal.error(&format!("{name}: get it again by `{}`", remedy(models, name)));
            }
        }
        match broken {
            0 if names.is_empty() => Ok(Outcome::NothingFound),
            0 => Ok(Outcome::Done),
            broken => Err(Failure::Partly(format!("{} damaged", view::counted(broken, "model")))),
        }
    }
}

/// The commands that get a model again.
fn remedy(models: &Models, name: &str) -> String {
    let manifest = Manifest::read(&models.dir().join(name)).unwrap_or_default();
    let repo = manifest.source.rsplitn(3, '/').take(2).collect::<Vec<_>>();
    let again = match (&repo[..], manifest.revision) {
        ([repo, owner], Some(revision)) => format!("pull {owner}/{repo} --revision {revision} --name {name}"),
        _ => format!("import '{}' --name {name}", manifest.source),
    };
    format!("magray model remove {name} --yes && magray model {again}")
}
