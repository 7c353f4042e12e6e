//! Runs this program as a child that may crash or hang, and reads what it says at its end.
use std::{
    io::Read,
    process::{Command, ExitStatus, Stdio},
    sync::mpsc,
    thread,
    time::Duration,
};

/// How a child ended.
#[derive(Debug)]
pub(super) enum End {
    /// It said this at its end, by a line that begins with the prefix.
    Said(String),
    /// It ended in another way: how, and the last that it wrote to stderr.
    Crashed { how: String, stderr: String },
    /// It was stopped for it took too long.
    Hung,
}

/// Runs `command` to its end, or for as long as `patience`. What it has to say is the last line of its stdout:
/// whatever a library prints comes before it.
pub(super) fn run(mut command: Command, prefix: &str, patience: Duration) -> End {
    let crashed = |how: String| End::Crashed { how, stderr: String::new() };
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(error) => {
            let program = command.get_program().to_string_lossy();
            return crashed(format!("'{program}' could not be run ({error})"));
        }
    };
    // The pipes close when the child ends, however it ends: that is what is waited for.
    let (sender, receiver) = mpsc::channel();
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    thread::spawn(move || {
        let stderr = thread::spawn(move || read(stderr));
        let stdout = read(stdout);
        let _ = sender.send((stdout, stderr.join().unwrap_or_default()));
    });
    let Ok((stdout, stderr)) = receiver.recv_timeout(patience) else {
        let _ = child.kill();
        let _ = child.wait();
        return End::Hung;
    };
    let status = match child.wait() {
        Ok(status) => status,
        Err(error) => return crashed(format!("it could not be waited for ({error})")),
    };
    let said = stdout.lines().last().and_then(|line| line.strip_prefix(prefix));
    match said {
        Some(said) if status.success() => End::Said(said.trim_start().to_owned()),
        _ => End::Crashed { how: describe(status), stderr: last_line(&stderr) },
    }
}

fn read(pipe: Option<impl Read>) -> String {
    let mut bytes = Vec::new();
    if let Some(mut pipe) = pipe {
        // What was read before an error counts.
        let _ = pipe.read_to_end(&mut bytes);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn last_line(text: &str) -> String {
    text.lines().map(str::trim).rfind(|line| !line.is_empty()).unwrap_or_default().to_owned()
}

fn describe(status: ExitStatus) -> String {
    #[cfg(unix)]
    if let Some(signal) = std::os::unix::process::ExitStatusExt::signal(&status) {
        return format!("it crashed with signal {signal}");
    }
    format!("it ended the process with {status}")
}
