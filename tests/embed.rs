//! `magray embed`: texts in, vectors out.
use crate::support::{CHAOS, Home, Ran};
use serde_json::Value;
use std::{fs, path::Path};

fn vectors(ran: &Ran) -> Vec<(Value, Vec<f32>)> {
    let line = |line: &str| {
        let line: Value = serde_json::from_str(line).expect("JSON");
        let numbers = line["embedding"].as_array().expect("numbers").iter();
        let vector = numbers.map(|number| number.as_f64().expect("a number") as f32).collect();
        (line["id"].clone(), vector)
    };
    ran.stdout.lines().map(line).collect()
}

/// Shape and bytes of a NumPy array of this type.
fn npy(path: &Path, dtype: &str) -> (Vec<usize>, Vec<u8>) {
    let bytes = fs::read(path).expect("the array");
    assert!(bytes.starts_with(b"\x93NUMPY\x01\x00"), "{:?}", &bytes[..8]);
    let length = usize::from(u16::from_le_bytes([bytes[8], bytes[9]]));
    assert_eq!((10 + length) % 64, 0, "the numbers are aligned");
    let header = std::str::from_utf8(&bytes[10..10 + length]).expect("text");
    assert!(header.contains(&format!("'descr': '{dtype}', 'fortran_order': False")), "{header}");
    let shape = header.split_once("'shape': (").expect("a shape").1.split_once(')').expect("its end").0;
    let shape = shape.split(", ").map(|number| number.parse().expect("a number")).collect();
    (shape, bytes[10 + length..].to_vec())
}

#[test]
fn texts_become_unit_vectors_and_nothing_is_stored() {
    let home = Home::new();
    let ran = home.run(&["embed", "the cat sleeps", "\u{e000}", "a cat is asleep"]).expect(0);
    let found = vectors(&ran);
    let ids: Vec<&Value> = found.iter().map(|(id, _)| id).collect();
    assert_eq!(ids, [0, 1, 2]);
    let dot = |a: usize, b: usize| found[a].1.iter().zip(&found[b].1).map(|(a, b)| a * b).sum::<f32>();
    assert_eq!(found[0].1.len(), 256);
    assert!((dot(0, 0) - 1.0).abs() < 1e-3 && dot(0, 2) > 0.5 && dot(1, 1) == 0.0, "{found:?}");
    ran.says(&["3 texts", "potion-base-8M-int8", "no word of 1 text"]);
    assert!(!home.data().exists());
}

#[test]
fn json_lines_keep_their_ids() {
    let home = Home::new();
    home.file("in.jsonl", "{\"_id\":\"a\",\"body\":\"one\"}\n{\"_id\":7,\"body\":\"two\",\"more\":[]}\n");
    let args = ["embed", "--file", "in.jsonl", "--field", "body", "--id-field", "_id", "--with-text"];
    let ran = home.run(&args).expect(0);
    let found = vectors(&ran);
    assert_eq!((&found[0].0, &found[1].0), (&"a".into(), &7.into()));
    assert!(ran.stdout.contains("\"text\":\"two\""), "{ran:?}");
    assert_eq!(found[1].1, vectors(&home.run(&["embed", "two"]).expect(0))[0].1);
}

#[test]
fn an_array_holds_the_same_numbers() {
    let home = Home::new();
    let lines: Vec<String> = (0..9000).map(|line| format!("number {line} of many")).collect();
    let input = lines.join("\n");
    let printed = vectors(&home.run_with_stdin(&["embed", "--stdin"], input.as_bytes()).expect(0));
    assert_eq!((printed.len(), &printed[8999].0), (9000, &8999.into()));
    let ran =
        home.run_with_stdin(&["embed", "--stdin", "-o", "out.npy", "--json"], input.as_bytes()).expect(0);
    let summary: Value = serde_json::from_str(&ran.stdout).expect("JSON");
    assert_eq!((&summary["texts"], &summary["dim"]), (&9000.into(), &256.into()), "{summary}");
    let (shape, bytes) = npy(&home.path().join("out.npy"), "<f4");
    assert_eq!(shape, [9000, 256]);
    let expected: Vec<u8> =
        printed.iter().flat_map(|(_, v)| v.iter().flat_map(|v| v.to_le_bytes())).collect();
    assert!(bytes == expected);
    home.run_with_stdin(&["embed", "--stdin", "-o", "half.npy", "--dtype", "f16"], input.as_bytes())
        .expect(0);
    let (shape, bytes) = npy(&home.path().join("half.npy"), "<f2");
    assert_eq!((shape, bytes.len()), (vec![9000, 256], 2 * 9000 * 256));
}

#[test]
fn base64_holds_the_same_numbers() {
    let home = Home::new();
    let plain = &vectors(&home.run(&["embed", "one"]).expect(0))[0].1;
    let ran = home.run(&["embed", "one", "--encoding", "base64"]).expect(0);
    let line: Value = serde_json::from_str(&ran.stdout).expect("JSON");
    let text = line["embedding"].as_str().expect("text");
    let digit = |c: u8| match c {
        b'A'..=b'Z' => u32::from(c - b'A'),
        b'a'..=b'z' => u32::from(c - b'a') + 26,
        b'0'..=b'9' => u32::from(c - b'0') + 52,
        b'+' => 62,
        b'/' => 63,
        _ => 0,
    };
    let bytes: Vec<u8> = text
        .as_bytes()
        .chunks(4)
        .flat_map(|four| four.iter().fold(0, |sum, &c| sum << 6 | digit(c)).to_be_bytes()[1..].to_vec())
        .collect();
    let found: Vec<f32> = bytes.as_chunks().0.iter().map(|four| f32::from_le_bytes(*four)).collect();
    assert_eq!(&found[..plain.len()], plain);
}

#[test]
fn bad_input_names_its_line_and_leaves_no_file() {
    let home = Home::new();
    let fails = |input: &str, args: &[&str], says: &[&str]| {
        home.file("in", input);
        let args = [&["embed", "--file", "in", "-o", "out.npy"], args].concat();
        home.run(&args).expect(2).says(says);
        let left: Vec<_> = home.path().read_dir().expect("the folder").collect();
        assert_eq!(left.len(), 1, "{left:?}");
    };
    let jsonl = ["--format", "jsonl"];
    fails("{\"text\":\"a\"}\nnonsense\n", &jsonl, &["in, line 2", "no JSON object"]);
    fails("{\"text\":\"a\"}\n{\"body\":\"b\"}\n", &jsonl, &["in, line 2", "no field 'text'", "body"]);
    fails("{\"text\":3}\n", &jsonl, &["in, line 1", "no string"]);
    fails("a\n\nb\n", &[], &["in, line 2", "empty"]);
    fails("", &[], &["no text to embed"]);
    fails("a\n", &["--encoding", "base64"], &["--encoding"]);
    home.file("in", b"good\nb\xffd\n");
    home.run(&["embed", "--file", "in"]).expect(2).says(&["in, line 2", "byte 1 is not UTF-8"]);
    home.run(&["embed", "--file", "nowhere"]).expect(3).says(&["nowhere"]);
    home.run(&["embed"]).expect(2);
}

#[cfg(unix)]
#[test]
fn ctrl_c_ends_it_cleanly() {
    use std::{io::Write as _, process::Stdio};
    let home = Home::new();
    for args in [&["embed", "--stdin", "-o", "out.npy"][..], &["embed", "--stdin"]] {
        let mut child = home
            .command(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("it runs");
        let mut input = child.stdin.take().expect("its input");
        let id = i32::try_from(child.id()).expect("small");
        let reader = std::thread::spawn(move || child.wait_with_output().expect("it ends"));
        // So much must have been read for the rest to fit into the pipe, so it is at work.
        for line in 0..12_000 {
            writeln!(input, "number {line} of many").expect("it reads");
        }
        // SAFETY: a child of ours that waits for more input, so the number is still its own.
        assert_eq!(unsafe { libc::kill(id, libc::SIGINT) }, 0);
        // Until it has ended, which closes the pipe: on a busy machine it hears of the signal late.
        let mut more = 0..10_000_000;
        while more.next().is_some_and(|line| writeln!(input, "number {line} of many").is_ok()) {}
        drop(input);
        let ran = Ran::from(reader.join().expect("its output")).expect(130);
        assert!(ran.stdout.is_empty() || ran.stdout.ends_with("]}\n"), "a whole line: {}", ran.stdout.len());
        ran.says(&["interrupted"]);
        assert_eq!(home.path().read_dir().expect("the folder").count(), 0, "no file is left");
    }
}

#[test]
fn a_whole_file_is_one_text() {
    let home = Home::new();
    home.file("a.txt", "first line\nsecond line\n");
    let found = vectors(&home.run(&["embed", "--file", "a.txt", "--format", "whole"]).expect(0));
    assert_eq!(found.len(), 1);
}

#[test]
fn the_model_is_the_one_that_the_data_folder_was_switched_to() {
    let home = Home::new();
    home.install(CHAOS);
    home.run(&["add", "a note"]).expect(0);
    home.json(&["--backend", "chaos", "reembed"]);
    assert_eq!(vectors(&home.run(&["embed", "a note"]).expect(0))[0].1.len(), 64);
    assert_eq!(vectors(&home.run(&["--backend", "cpu", "embed", "a note"]).expect(0))[0].1.len(), 256);
}
