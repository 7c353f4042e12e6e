//! `magray model` against a hub with every bad habit.
use crate::{
    hub::{COMMIT, Files, Hub, Manners, REPO},
    support::{Home, Ran},
    tiny_model::{POOLING, WEIGHTS, assert_is_model, assert_no_model, config, contents, model, weights},
};
use serde_json::Value;
use std::{
    fs,
    io::{BufRead as _, BufReader},
    process::{Child, Stdio},
};

fn hub() -> Hub {
    hub_by(Hub::new)
}

fn hub_by(start: fn(&Files<'_>) -> Hub) -> Hub {
    let (model, readme) = (model(), ("README.md", b"# Tiny".to_vec()));
    let evil = ("../../evil/config.json", b"evil".to_vec());
    let onnx = ("onnx/model_int8.onnx", vec![7; 20_000]);
    let files: Vec<_> = model.iter().chain([&readme, &evil, &onnx]).collect();
    start(&files.iter().map(|(name, content)| (*name, &content[..])).collect::<Vec<_>>())
}

/// `magray` with the hub as its hub, which does not wait between attempts.
fn command(home: &Home, hub: &Hub, args: &[&str]) -> std::process::Command {
    let mut command = home.command(args);
    command.env("HF_ENDPOINT", hub.endpoint()).env("MAGRAY_MODELS__RETRY_WAIT_MS", "0");
    command
}

fn pull(home: &Home, hub: &Hub) -> Ran {
    Ran::of(&mut command(home, hub, &["model", "pull", REPO]))
}

fn pull_once(home: &Home, hub: &Hub) -> Ran {
    Ran::of(command(home, hub, &["model", "pull", REPO]).env("MAGRAY_MODELS__RETRIES", "0"))
}

#[test]
fn a_model_is_pulled_whole_and_nothing_else() {
    let (home, hub) = (Home::new(), hub());
    pull(&home, &hub).expect(0);
    assert_is_model(&home, "tiny");
    let asked = hub.log();
    assert!(asked.iter().all(|request| !request.path.contains("README") && !request.path.contains("onnx")));
    assert_eq!(hub.sent("model.safetensors"), WEIGHTS);
    let manifest = fs::read(home.data().join("models/tiny/magray.json")).expect("a manifest");
    let manifest: Value = serde_json::from_slice(&manifest).expect("JSON");
    assert_eq!(manifest["source"], format!("{}/{REPO}", hub.endpoint()));
    assert_eq!(manifest["revision"], COMMIT);
    assert!(!home.path().join("evil").exists() && !home.data().join("evil").exists());

    // Once it is here, the hub is not asked again.
    let again = pull(&home, &hub).expect(0);
    assert!(again.stdout.contains("here already"), "{again:?}");
    assert_eq!(hub.log().len(), asked.len());
    Ran::of(&mut command(&home, &hub, &["model", "pull", REPO, "--revision", "v2"]))
        .expect(2)
        .says(&["--name"]);
    Ran::of(&mut command(&home, &hub, &["model", "pull", REPO, "--revision", "v1", "--name", "other"]))
        .expect(0);
    assert_is_model(&home, "other");
}

#[test]
fn a_download_that_breaks_goes_on_where_it_broke() {
    let (home, hub) = (Home::new(), hub());
    hub.behave(Manners { break_after: Some(300_000), ..Manners::default() });
    // More breaks than retries: what counts is that each brought something.
    let ran =
        Ran::of(command(&home, &hub, &["model", "pull", REPO]).env("MAGRAY_MODELS__RETRIES", "1")).expect(0);
    assert!(ran.stderr.contains("the connection"), "{ran:?}");
    assert_is_model(&home, "tiny");
    assert_eq!(hub.sent("model.safetensors"), WEIGHTS, "no byte twice");
    let ranges: Vec<_> = hub.log().into_iter().filter(|r| r.store).map(|request| request.range).collect();
    assert_eq!(ranges.len(), 7);
    assert_eq!((ranges[0].as_deref(), ranges[6].as_deref()), (None, Some("bytes=1800000-")));
}

#[test]
fn a_later_run_goes_on_where_an_earlier_one_gave_up() {
    let (home, hub) = (Home::new(), hub());
    hub.behave(Manners { break_after: Some(300_000), ..Manners::default() });
    pull_once(&home, &hub).expect(3).says(&["model.safetensors", "300000 of 2000000", "goes on from there"]);
    assert_no_model(&home);
    home.run(&["model", "list"]).says(&["tiny", "goes on"]);
    hub.behave(Manners::default());
    let pulled = Ran::of(&mut command(&home, &hub, &["model", "pull", REPO, "--json"])).expect(0).stdout;
    let pulled: Value = serde_json::from_str(&pulled).expect("JSON");
    assert_eq!(pulled["downloaded_bytes"], WEIGHTS - 300_000, "small files were here too");
    assert_is_model(&home, "tiny");
    assert_eq!(hub.sent("model.safetensors"), WEIGHTS);
    assert_eq!(hub.sent("/config.json"), config().len() + POOLING.len());
}

#[test]
fn a_part_that_was_damaged_since_is_fetched_anew() {
    let (home, hub) = (Home::new(), hub());
    hub.behave(Manners { break_after: Some(300_000), ..Manners::default() });
    pull_once(&home, &hub).expect(3);
    let incoming = home.data().join("models/.incoming/tiny");
    let part = fs::read_dir(&incoming).expect("a folder").map(|entry| entry.expect("an entry").path());
    let part =
        part.into_iter().find(|path| path.extension().is_some_and(|end| end == "part")).expect("a part");
    let mut bytes = fs::read(&part).expect("the part");
    bytes[1000] ^= 1;
    fs::write(&part, bytes).expect("written");
    hub.behave(Manners::default());
    pull(&home, &hub).expect(0).says(&["damaged"]);
    assert_is_model(&home, "tiny");
}

#[test]
fn a_server_that_takes_no_notice_of_ranges_sends_all_again() {
    let (home, hub) = (Home::new(), hub());
    let manners =
        Manners { break_after: Some(300_000), break_once: true, ignore_range: true, ..Manners::default() };
    hub.behave(manners);
    pull(&home, &hub).expect(0);
    assert_is_model(&home, "tiny");
    assert_eq!(hub.sent("model.safetensors"), 300_000 + WEIGHTS);

    // One that never gets further is given up.
    let home = Home::new();
    hub.behave(Manners { break_after: Some(300_000), ignore_range: true, ..Manners::default() });
    pull(&home, &hub).expect(3).says(&["6 times in a row"]);
    assert_no_model(&home);
}

#[test]
fn the_token_stays_with_its_server() {
    let (home, hub) = (Home::new(), hub());
    hub.behave(Manners { token: Some("hf_secret"), ..Manners::default() });
    pull(&home, &hub).expect(3).says(&["gated", "HF_TOKEN", &format!("{}/{REPO}", hub.endpoint())]);
    let wrong = Ran::of(command(&home, &hub, &["model", "pull", REPO]).env("HF_TOKEN", "hf_other"));
    let wrong = wrong.expect(3).says(&["gated", "account of your token"]);
    assert!(!wrong.stderr.contains("hf_other"));

    home.file(".cache/huggingface/token", "hf_secret\n");
    let ran = Ran::of(&mut command(&home, &hub, &["-vv", "model", "pull", REPO])).expect(0);
    assert!(!ran.stderr.contains("hf_secret") && !ran.stdout.contains("hf_secret"), "{ran:?}");
    assert_is_model(&home, "tiny");
    let (store, own): (Vec<_>, Vec<_>) = hub.log().into_iter().partition(|request| request.store);
    assert!(!store.is_empty() && store.iter().all(|request| request.authorization.is_none()), "{store:?}");
    assert!(own.iter().any(|request| request.authorization.as_deref() == Some("Bearer hf_secret")));
}

#[test]
fn only_servers_that_are_trusted_are_believed() {
    let (home, hub) = (Home::new(), hub_by(Hub::secure));
    let ran = pull(&home, &hub).expect(3).says(&["cannot be trusted", "SSL_CERT_FILE"]);
    assert!(!ran.stderr.contains("trying again"), "{ran:?}");
    let certificate = home.file("hub.pem", hub.certificate.clone().expect("a certificate"));
    let pull = || {
        let mut pull = command(&home, &hub, &["model", "pull", REPO]);
        Ran::of(pull.env("SSL_CERT_FILE", &certificate).env("HF_TOKEN", "hf_secret"))
    };
    hub.behave(Manners { downgrade: true, ..Manners::default() });
    pull().expect(3).says(&["not secure"]);
    assert_no_model(&home);
    hub.behave(Manners { break_after: Some(700_000), ..Manners::default() });
    pull().expect(0);
    assert_is_model(&home, "tiny");
    assert!(hub.log().iter().all(|request| request.store != request.authorization.is_some()));
}

#[test]
fn what_does_not_match_its_digest_is_thrown_away() {
    let (home, hub) = (Home::new(), hub());
    hub.behave(Manners { corrupt: true, ..Manners::default() });
    pull(&home, &hub).expect(3).says(&["does not match the digest", "model.safetensors"]);
    assert_no_model(&home);
    assert!(
        contents(&home.data().join("models/.incoming")).iter().all(|(name, _)| !name.contains("safetensors"))
    );
    hub.behave(Manners::default());
    pull(&home, &hub).expect(0);
    assert_is_model(&home, "tiny");
}

#[test]
fn what_is_not_there_is_said() {
    let (home, hub) = (Home::new(), hub());
    let run = |args: &[&str]| Ran::of(&mut command(&home, &hub, &[&["model", "pull"], args].concat()));
    run(&["maker/none"]).expect(3).says(&["no repository maker/none"]);
    run(&[REPO, "--revision", "v9"]).expect(3).says(&["no revision 'v9'"]);
    run(&[REPO, "--file", "onnx/none.onnx"]).expect(3).says(&["no file 'onnx/none.onnx'"]);
    run(&[REPO, "--file", "../../evil/config.json"]).expect(3).says(&["no file"]);
    run(&["all-MiniLM-L6-v3"]).expect(2).says(&["did you mean 'all-MiniLM-L6-v2'"]);
    run(&["../../etc"]).expect(2);
    run(&[REPO, "--name", "../x"]).expect(2).says(&["cannot be the name"]);
    let mut elsewhere = home.command(&["model", "pull", REPO]);
    Ran::of(elsewhere.env("HF_ENDPOINT", "not an address")).expect(2).says(&["HF_ENDPOINT"]);
    Ran::of(elsewhere.env("HF_HUB_OFFLINE", "1")).expect(3).says(&["HF_HUB_OFFLINE"]);
    assert_no_model(&home);
}

#[test]
fn a_server_that_is_no_hub_is_said_and_left() {
    let (home, hub) = (Home::new(), hub());
    hub.behave(Manners { page: true, ..Manners::default() });
    pull(&home, &hub).expect(3).says(&["no listing of a repository", "HF_ENDPOINT"]);
    hub.behave(Manners { circle: true, ..Manners::default() });
    pull(&home, &hub).expect(3).says(&["more than 10 redirects"]);
    hub.behave(Manners { claim: Some(1 << 60), ..Manners::default() });
    pull(&home, &hub).expect(3).says(&["make room"]);
    hub.behave(Manners { claim: Some(1_999_999), ..Manners::default() });
    pull(&home, &hub).expect(3).says(&["sends 2000000 bytes, and lists 1999999"]);
    assert_no_model(&home);
    let nobody = Hub::new(&[]).endpoint();
    let mut gone = home.command(&["model", "pull", REPO]);
    gone.env("HF_ENDPOINT", nobody)
        .env("MAGRAY_MODELS__RETRIES", "1")
        .env("MAGRAY_MODELS__RETRY_WAIT_MS", "0");
    Ran::of(&mut gone).expect(3).says(&["2 times in a row"]);
}

#[test]
fn a_busy_server_is_asked_again() {
    let (home, hub) = (Home::new(), hub());
    hub.behave(Manners { first: Some(("429 Too Many Requests", "Retry-After: 0")), ..Manners::default() });
    pull(&home, &hub).expect(0).says(&["429", "trying again"]);
    assert_is_model(&home, "tiny");
}

#[test]
fn a_listing_without_digests_is_completed_by_the_files_own() {
    let (home, hub) = (Home::new(), hub());
    hub.behave(Manners { terse: true, ..Manners::default() });
    pull(&home, &hub).expect(0);
    assert_is_model(&home, "tiny");
}

#[test]
fn a_server_that_falls_silent_is_left_and_what_came_is_kept() {
    let (home, hub) = (Home::new(), hub());
    hub.behave(Manners { break_after: Some(300_000), stall: true, ..Manners::default() });
    let mut pulling = command(&home, &hub, &["model", "pull", REPO]);
    pulling.env("MAGRAY_MODELS__TIMEOUT_MS", "3000").env("MAGRAY_MODELS__RETRIES", "0");
    Ran::of(&mut pulling).expect(3).says(&["model.safetensors"]);
    hub.behave(Manners::default());
    pull(&home, &hub).expect(0);
    assert_is_model(&home, "tiny");
    assert_eq!(hub.sent("model.safetensors"), WEIGHTS);
}

#[cfg(unix)]
#[test]
fn ctrl_c_leaves_what_came_for_the_next_time() {
    let (home, hub) = (Home::new(), hub());
    hub.behave(Manners { break_after: Some(300_000), stall: true, ..Manners::default() });
    let mut pulling = command(&home, &hub, &["model", "pull", REPO]);
    pulling.env("MAGRAY_MODELS__TIMEOUT_MS", "3000").env("MAGRAY_MODELS__RETRIES", "100");
    let child = spawn(pulling);
    // The listing, five files, of which one is asked of two servers, and that one's second attempt.
    hub.wait_for(8);
    // SAFETY: a signal to a process that we started and have not waited for.
    assert_eq!(unsafe { libc::kill(child.id().cast_signed(), libc::SIGINT) }, 0);
    Ran::from(child.wait_with_output().expect("it ends")).expect(130).says(&["interrupted"]);
    assert_no_model(&home);
    let before = hub.log().len();
    hub.behave(Manners::default());
    pull(&home, &hub).expect(0);
    assert_is_model(&home, "tiny");
    let range = hub.log().into_iter().skip(before).find_map(|request| request.range).expect("a range");
    assert!(*range >= *"bytes=300000-", "{range}");
}

fn spawn(mut command: std::process::Command) -> Child {
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it runs")
}

#[test]
fn two_that_pull_the_same_fetch_it_once() {
    let (home, hub) = (Home::new(), hub());
    hub.close();
    let first = spawn(command(&home, &hub, &["model", "pull", REPO]));
    hub.wait_for(1);
    let mut second = spawn(command(&home, &hub, &["model", "pull", REPO]));
    let mut says = String::new();
    let mut stderr = BufReader::new(second.stderr.take().expect("its stderr"));
    stderr.read_line(&mut says).expect("a line");
    assert!(says.contains("waiting"), "{says}");
    hub.open();
    Ran::from(first.wait_with_output().expect("it ends")).expect(0);
    let second = Ran::from(second.wait_with_output().expect("it ends")).expect(0);
    assert!(second.stdout.contains("here already"), "{second:?}");
    assert_is_model(&home, "tiny");
    assert_eq!(hub.sent("model.safetensors"), WEIGHTS);
}

#[test]
fn a_model_that_nothing_here_runs_is_refused_before_its_weights_come() {
    let home = Home::new();
    let strange = config_of("diffusion");
    let weights = weights();
    let hub =
        Hub::new(&[("config.json", &strange), ("model.safetensors", &weights), ("tokenizer.json", b"{}")]);
    pull(&home, &hub).expect(3).says(&["diffusion", "--force"]);
    assert_eq!(hub.sent("model.safetensors"), 0);
    assert_no_model(&home);
    Ran::of(&mut command(&home, &hub, &["model", "pull", REPO, "--force"])).expect(0);
    let listed = home.run(&["model", "list"]).expect(0).stdout;
    assert!(listed.contains("not usable") && listed.contains("diffusion"), "{listed}");

    let pickled = Hub::new(&[("config.json", &config()), ("pytorch_model.bin", b"pickle")]);
    pull(&Home::new(), &pickled).expect(3).says(&["pytorch_model.bin", "model.safetensors"]);
}

fn config_of(kind: &str) -> Vec<u8> {
    String::from_utf8(config()).expect("UTF-8").replace("bert", kind).into_bytes()
}

#[test]
fn damage_is_found_and_the_remedy_works() {
    let (home, hub) = (Home::new(), hub());
    pull(&home, &hub).expect(0);
    let dir = home.data().join("models/tiny");
    home.run(&["model", "verify"]).expect(0);
    let mut bytes = weights();
    bytes[77] ^= 1;
    fs::write(dir.join("model.safetensors"), bytes).expect("written");
    fs::remove_file(dir.join("modules.json")).expect("removed");
    let ran = home.run(&["model", "verify"]).expect(3);
    let ran = ran.says(&["model.safetensors: its content has changed", "modules.json: it is missing"]);
    let json = home.run(&["model", "verify", "tiny", "--json"]).expect(3).stdout;
    let json: Value = serde_json::from_str(&json).expect("JSON");
    assert_eq!((&json["whole"], json["damage"].as_array().map(Vec::len)), (&false.into(), Some(2)));

    let commands = ran.stderr.split('`').nth(1).expect("a remedy");
    for remedy in commands.split(" && ") {
        let args: Vec<&str> = remedy.split(' ').skip(1).collect();
        Ran::of(&mut command(&home, &hub, &args)).expect(0);
    }
    assert_is_model(&home, "tiny");
    fs::remove_file(dir.join("magray.json")).expect("removed");
    home.run(&["model", "verify", "tiny"]).expect(3).says(&["no manifest"]);
    home.run(&["model", "verify", "none"]).expect(1).says(&["no model 'none'"]);
}

#[test]
fn times_that_differ_are_corrected_where_the_content_is_the_same() {
    let (home, hub) = (Home::new(), hub());
    pull(&home, &hub).expect(0);
    let dir = home.data().join("models/tiny");
    let time = |manifest: &Value| manifest["files"][2]["mtime_ns"].clone();
    let manifest = || -> Value {
        serde_json::from_slice(&fs::read(dir.join("magray.json")).expect("a manifest")).expect("JSON")
    };
    let before = time(&manifest());
    fs::write(dir.join("model.safetensors"), weights()).expect("written");
    home.run(&["model", "verify"]).expect(0);
    assert_ne!(time(&manifest()), before);
    home.run(&["model", "verify"]).expect(0);
}

#[test]
fn a_model_is_shown_and_removed() {
    let (home, hub) = (Home::new(), hub());
    home.run(&["model", "list"]).expect(1).says(&["--available"]);
    Ran::of(&mut command(&home, &hub, &["model", "pull", REPO, "--file", "onnx/model_int8.onnx"])).expect(0);
    let in_use = ("MAGRAY_AI__EMBEDDING__MODEL_NAME", "tiny");
    let shown = Ran::of(home.command(&["model", "info", "tiny", "--json"]).env(in_use.0, in_use.1)).expect(0);
    let shown: Value = serde_json::from_str(&shown.stdout).expect("JSON");
    assert_eq!(shown["architecture"], "bert 2x32");
    assert_eq!((&shown["dim"], &shown["max_tokens"]), (&32.into(), &48.into()));
    assert_eq!((&shown["spec"]["pooling"], &shown["in_use"]), (&"mean".into(), &true.into()));
    assert_eq!(shown["space"].as_str().map(str::len), Some(64));
    assert_eq!(shown["files"].as_array().map(Vec::len), Some(6));
    let text = home.run(&["model", "info", "tiny"]).expect(0).stdout;
    assert!(
        text.contains("bert 2x32") && text.contains("onnx/model_int8.onnx") && !text.contains("in use"),
        "{text}"
    );
    home.run(&["model", "info", "none"]).expect(1);

    home.run(&["model", "remove", "tiny"]).expect(2).says(&["--yes"]);
    Ran::of(home.command(&["model", "remove", "tiny"]).env(in_use.0, in_use.1)).expect(2).says(&["in use"]);
    home.run(&["model", "remove", "..", "--yes"]).expect(1);
    home.run(&["model", "remove", "tiny", "--yes"]).expect(0);
    assert_no_model(&home);
    home.run(&["model", "remove", "tiny", "--yes"]).expect(1);
    let known = home.run(&["model", "list", "--available", "--json"]).expect(0).stdout;
    assert!(known.contains("multilingual-e5-small") && known.contains("\"licence\":\"MIT\""), "{known}");
}

#[test]
fn what_is_left_of_a_download_can_be_removed() {
    let (home, hub) = (Home::new(), hub());
    hub.behave(Manners { break_after: Some(300_000), ..Manners::default() });
    pull_once(&home, &hub).expect(3);
    home.run(&["model", "remove", "tiny", "--yes"]).expect(0);
    assert!(contents(&home.data().join("models")).iter().all(|(name, _)| name.ends_with(".lock")));
}
