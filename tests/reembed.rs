//! From one model to another while others read and write. `chaos` embeds by hashing words, 64 wide.
use crate::support::{CHAOS, Home, Ran};
use serde_json::Value;
use std::{
    io::{BufRead as _, BufReader, Write as _},
    process::Stdio,
};

const OLD: &str = "potion-base-8M-int8";
const NEW: &str = "words";
const SWITCH: [&str; 3] = ["--backend", "chaos", "reembed"];

fn home_with(lines: &[String]) -> Home {
    let home = Home::new();
    home.install(CHAOS);
    home.run_with_stdin(&["add", "--lines", "-", "-q"], lines.join("\n").as_bytes()).expect(0);
    home
}

fn lines(count: u64) -> Vec<String> {
    (0..count).map(|line| format!("line {line} says {}", line * 7919 % 10_007)).collect()
}

fn model(home: &Home, query: &str) -> String {
    home.json(&["search", query, "-k", "1"])["model"].as_str().expect("a model").to_owned()
}

/// Whether a text is found by itself. Under `chaos` some others have the very same vector.
fn finds(home: &Home, text: &str) -> bool {
    home.search(&[text, "-k", "50"]).iter().any(|found| found == text)
}

/// What `--status` says of a model.
fn space(home: &Home, model: &str) -> Option<Value> {
    let spaces = home.json(&["reembed", "--status"])["spaces"].as_array().expect("spaces").clone();
    spaces.into_iter().find(|space| space["model"] == model)
}

#[test]
fn a_switch_holds_for_every_command_and_leads_back() {
    let texts = lines(20);
    let home = home_with(&texts);
    let plan = home.json(&[&SWITCH[..], &["--dry-run"]].concat());
    assert_eq!((&plan["from"]["model"], &plan["to"]["model"]), (&OLD.into(), &NEW.into()), "{plan}");
    assert_eq!((&plan["to"]["missing"], &plan["to"]["dim"]), (&20.into(), &64.into()), "{plan}");
    assert!(plan["seconds"].as_f64().is_some() && plan["more_bytes"].as_u64() > Some(20 * 128), "{plan}");
    assert_eq!(model(&home, "line 3"), OLD);

    let did = home.json(&SWITCH);
    assert_eq!((&did["embedded"], &did["switched"]), (&20.into(), &true.into()), "{did}");
    assert_eq!(
        (&did["from"]["state"], &did["to"]["state"]),
        (&"previous".into(), &"in force".into()),
        "{did}"
    );
    assert!(did["to"]["index_bytes"].as_u64() > Some(0), "sealed before the switch: {did}");
    assert_eq!(model(&home, "line 3"), NEW);
    assert_eq!(home.search(&[&texts[7], "-k", "1"]), [texts[7].as_str()]);
    let again = home.json(&["reembed"]);
    assert_eq!((&again["embedded"], &again["switched"]), (&0.into(), &false.into()), "{again}");

    // What is new since then is known to the old model too when it is back.
    home.run(&["add", "a text that came with the new model"]).expect(0);
    let back = home.json(&["reembed", "--rollback"]);
    assert_eq!((&back["embedded"], &back["to"]["model"]), (&1.into(), &OLD.into()), "{back}");
    assert_eq!(model(&home, "line 3"), OLD);
    assert_eq!(home.search(&["came with the new model", "-k", "1"]), ["a text that came with the new model"]);

    let dropped = home.json(&["reembed", "--drop-old"]);
    assert_eq!(dropped["dropped"][0]["model"], NEW, "{dropped}");
    assert!(space(&home, NEW).is_none());
    let indexes: Vec<_> = home.data().join("index").read_dir().expect("indexes").collect();
    assert!(indexes.len() <= 1, "{indexes:?}");
    home.run(&["reembed", "--rollback"]).expect(2).says(&["no model to go back to"]);
    assert_eq!(home.search(&[&texts[7], "-k", "1"]), [texts[7].as_str()]);
}

#[test]
fn nothing_is_dropped_that_may_be_needed() {
    let home = home_with(&lines(5));
    home.json(&SWITCH);
    home.run(&["--backend", "cpu", "add", "known to the old model only"]).expect(0);
    home.run(&["reembed", "--drop-old"]).expect(2).says(&["no vector of 1 record", "magray reembed"]);
    let ran = home.run(&["search", "line 3"]).expect(0);
    ran.says(&["1 record without a vector of words", "reembed"]);
    assert_eq!(home.json(&["reembed"])["embedded"], 1);
    home.run(&["reembed", "--drop-old"]).expect(0);
    assert_eq!(home.search(&["known to the old model only", "-k", "1"]), ["known to the old model only"]);
}

#[test]
fn a_killed_run_goes_on_where_it_was_and_the_old_model_serves_until_then() {
    let texts = lines(6000);
    let home = home_with(&texts);
    let log = home.data().join("magray.db-wal");
    let mut kills = 0;
    for round in 1.. {
        let mut child =
            home.command(&SWITCH).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("it runs");
        // Killed once so much is written; a little later each time, until one comes through.
        let limit = 150_000 * round;
        let done = loop {
            if let Some(status) = child.try_wait().expect("its state") {
                break status.success();
            }
            if std::fs::metadata(&log).map_or(0, |file| file.len()) > limit {
                child.kill().expect("killed");
                child.wait().expect("it ends");
                kills += 1;
                break false;
            }
            std::thread::yield_now();
        };
        let serving = model(&home, "line 17 says");
        let new = space(&home, NEW);
        if serving == NEW {
            assert_eq!(new.expect("the space")["missing"], 0);
            break;
        }
        assert_eq!(serving, OLD);
        assert!(!done, "it ended well and did not switch");
        assert!(round < 200, "it never comes through");
        assert!(finds(&home, &texts[4321]));
    }
    assert!(kills > 0, "it was quicker than the killer");
    let new = space(&home, NEW).expect("the space");
    assert_eq!((&new["embedded"], &new["state"]), (&6000.into(), &"in force".into()), "{new}");
    assert!(finds(&home, &texts[4321]));
    let layers = home.json(&["stats"])["layers"].clone();
    assert_eq!(layers[1]["sealed"], 6000, "{layers}");
}

#[test]
fn what_others_add_meanwhile_is_in_the_new_space() {
    let beside = |line: u64| format!("written beside it, {line} as {}", line * 7919 % 10_007);
    let home = home_with(&lines(2000));
    // It has the old model loaded from the first answer on.
    let mut writer = home
        .command(&["add", "--lines", "-", "--json"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("it runs");
    let mut input = writer.stdin.take().expect("its input");
    let mut answers = BufReader::new(writer.stdout.take().expect("its output")).lines();
    let mut add = |first: u64| {
        // Lines are stored a thousand at a time.
        for line in first..first + 1000 {
            writeln!(input, "{}", beside(line)).expect("it reads");
        }
        for _ in 0..1000 {
            answers.next().expect("an answer").expect("a line");
        }
    };
    add(0);
    let mut child =
        home.command(&SWITCH).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("it runs");
    add(1000);
    assert!(child.wait().expect("it ends").success());
    add(2000);
    drop(input);
    Ran::from(writer.wait_with_output().expect("it ends")).expect(0);
    let new = space(&home, NEW).expect("the space");
    assert_eq!((&new["embedded"], &new["missing"]), (&5000.into(), &0.into()), "{new}");
    for line in [500, 1500, 2500] {
        assert!(finds(&home, &beside(line)));
    }
}

#[test]
fn a_configuration_that_names_another_model_is_told_so() {
    let home = home_with(&lines(3));
    home.json(&SWITCH);
    let search = |value: &str, args: &[&str]| {
        let mut command = home.command(&[&["search", "line 1", "--json"], args].concat());
        Ran::of(command.env("MAGRAY_AI__EMBEDDING__MODEL_NAME", value))
    };
    let ran = search("some-other", &[]).expect(0);
    assert!(ran.stdout.contains(r#""model":"words""#), "{ran:?}");
    ran.says(&["MAGRAY_AI__EMBEDDING__MODEL_NAME names the model some-other", "--model some-other reembed"]);
    assert_eq!(search(OLD, &[]).expect(0).stderr.matches("names the model").count(), 0);
    // A flag is for one command, and goes before the switch.
    let answer = home.json(&["--backend", "cpu", "search", "line 1"]);
    assert_eq!((&answer["model"], &answer["unembedded"]), (&OLD.into(), &0.into()), "{answer}");
}

#[test]
fn a_model_that_cannot_be_had_changes_nothing() {
    let home = home_with(&lines(3));
    home.run(&["reembed", "--model", "no-such-model"]).expect(3).says(&["no-such-model"]);
    home.run(&["--backend", "no-such-backend", "reembed"]).expect(2).says(&["no-such-backend"]);
    assert_eq!(model(&home, "line 1"), OLD);
    home.json(&SWITCH);
    std::fs::remove_file(home.path().join("plugins").join(CHAOS)).expect("removed");
    home.run(&["search", "line 1"]).expect(2).says(&["chaos"]);
    home.run(&["reembed", "--rollback"]).expect(0);
    assert_eq!(model(&home, "line 1"), OLD);
}
