//! What reaches the user: answers, progress, hints, warnings and errors, each in its place.
use super::{Failure, args::Global};
use crate::{config::LogLevel, models};
use anstyle::{AnsiColor, Style};
use indicatif::{ProgressBar, ProgressStyle};
use magray_plugin_api::CallContext;
use serde::Serialize;
use std::{
    fmt,
    io::{self, BufRead as _, IsTerminal as _, Write as _},
    sync::{
        Mutex, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::{
    filter::LevelFilter,
    fmt::{FmtContext, FormatEvent, FormatFields, format::Writer},
    registry::LookupSpan,
};

pub(super) const BOLD: Style = Style::new().bold();
pub(super) const DIM: Style = Style::new().dimmed();
pub(super) const GREEN: Style = AnsiColor::Green.on_default();
pub(super) const CYAN: Style = AnsiColor::Cyan.on_default();
pub(super) const YELLOW: Style = AnsiColor::Yellow.on_default().bold();
pub(super) const RED: Style = AnsiColor::Red.on_default().bold();

/// The bar on the screen: messages are printed above it.
static BAR: Mutex<Option<ProgressBar>> = Mutex::new(None);
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// How this run talks.
#[derive(Debug)]
pub(super) struct Terminal {
    pub(super) json: bool,
    pub(super) quiet: bool,
    verbose: u8,
    logging: OnceLock<()>,
}

impl Terminal {
    pub(super) fn new(global: &Global) -> Self {
        magray_plugin_api::host::keep_panic_messages(|message| {
            print_above_bar(&format!("{RED}error:{RED:#} internal error: {message}"));
        });
        Self { json: global.json, quiet: global.quiet, verbose: global.verbose, logging: OnceLock::new() }
    }

    /// From here on the first Ctrl-C lets the command finish what it has begun to store; a second
    /// one ends it at once, which loses nothing either.
    pub(super) fn stop_gently(&self) {
        self.on_interrupt(|| {});
    }

    /// The same, and the first one is told to `interrupted`.
    pub(super) fn on_interrupt(&self, interrupted: impl Fn() + Send + 'static) {
        let handled = ctrlc::set_handler(move || {
            if INTERRUPTED.swap(true, Ordering::Relaxed) {
                std::process::exit(i32::from(super::INTERRUPTED));
            }
            interrupted();
        });
        if let Err(error) = handled {
            tracing::debug!("Ctrl-C ends the program at once: {error}");
        }
    }

    /// From here on SIGTERM, by which service managers end a program, counts as Ctrl-C.
    pub(super) fn stop_gently_on_termination(&self) {
        #[cfg(unix)]
        {
            extern "C" fn as_interrupt(_: libc::c_int) {
                // SAFETY: `raise` may be called where a signal is handled. What SIGINT does is set before this
                // handler is.
                unsafe { libc::raise(libc::SIGINT) };
            }
            let handler = as_interrupt as extern "C" fn(libc::c_int);
            // SAFETY: the handler takes the number of a signal, as the system passes it, and only raises another.
            if unsafe { libc::signal(libc::SIGTERM, handler as libc::sighandler_t) } == libc::SIG_ERR {
                let error = io::Error::last_os_error();
                tracing::debug!("SIGTERM ends the program at once: {error}");
            }
        }
    }

    /// Starts printing log messages of `level` and above, where no flag says otherwise.
    pub(super) fn log_from(&self, level: LogLevel) {
        let level = match (self.quiet, self.verbose) {
            (true, _) => LevelFilter::ERROR,
            (_, 0) => filter(level),
            (_, 1) => LevelFilter::DEBUG,
            _ => LevelFilter::TRACE,
        };
        self.logging.get_or_init(|| {
            tracing_subscriber::fmt()
                .with_max_level(level)
                .with_writer(AboveBar::default)
                .event_format(OneLine)
                .init();
        });
    }

    /// Prints an answer.
    pub(super) fn print(&self, text: fmt::Arguments<'_>) -> Result<(), Failure> {
        let mut out = anstream::stdout().lock();
        writeln!(out, "{text}").map_err(Failure::io("cannot write to standard output"))
    }

    /// Prints an answer as one line of JSON.
    pub(super) fn print_json(&self, value: &impl Serialize) -> Result<(), Failure> {
        let mut out = io::stdout().lock();
        serde_json::to_writer(&mut out, value)
            .map_err(io::Error::from)
            .and_then(|()| writeln!(out))
            .map_err(Failure::io("cannot write to standard output"))
    }

    /// Tells something helpful, unless the user wants quiet.
    pub(super) fn hint(&self, text: &str) {
        if !self.quiet {
            print_above_bar(&format!("{DIM}{text}{DIM:#}"));
        }
    }

    pub(super) fn warn(&self, text: &str) {
        if !self.quiet {
            print_above_bar(&format!("{YELLOW}warning:{YELLOW:#} {text}"));
        }
    }

    pub(super) fn error(&self, text: &str) {
        print_above_bar(&format!("{RED}error:{RED:#} {text}"));
    }

    /// Asks whether to do something that cannot be undone.
    ///
    /// Fails where nobody can answer.
    pub(super) fn confirm(&self, what: &str) -> Result<bool, Failure> {
        if !io::stdin().is_terminal() {
            return Err(Failure::Usage(format!("this would {what}; add --yes to do it")));
        }
        // Nobody can be told that stderr is closed.
        let _ = write!(anstream::stderr(), "{what}? [y/N] ");
        let mut answer = String::new();
        io::stdin().lock().read_line(&mut answer).map_err(Failure::io("cannot read the answer"))?;
        Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
    }

    /// Columns of the terminal, for wrapping; 100 where it is none.
    pub(super) fn width(&self) -> usize {
        console_width().clamp(40, 120)
    }

    /// A bar on stderr, where that is a terminal and the user does not want quiet.
    pub(super) fn progress(&self, unit: &str) -> Progress {
        self.bar(&format!("{{pos}}/{{len}} {unit}  {{per_sec}}"))
    }

    /// The same for bytes.
    pub(super) fn progress_in_bytes(&self) -> Progress {
        self.bar("{decimal_bytes}/{decimal_total_bytes}  {decimal_bytes_per_sec}")
    }

    fn bar(&self, counts: &str) -> Progress {
        let shown = !self.quiet && io::stderr().is_terminal();
        let bar = if shown { ProgressBar::no_length() } else { ProgressBar::hidden() };
        let template = format!("{{bar:30.cyan/dim}} {counts}  {{eta}} left  {{wide_msg}}");
        if let Ok(style) = ProgressStyle::with_template(&template) {
            bar.set_style(style.progress_chars("━━─"));
        }
        bar.enable_steady_tick(Duration::from_millis(200));
        set_bar(Some(bar.clone()));
        Progress(bar)
    }
}

/// A bar that leaves the screen when it is dropped.
#[derive(Debug)]
pub(super) struct Progress(pub(super) ProgressBar);

impl Progress {
    /// Shows how far the work on models is.
    pub(super) fn show(&self, now: models::Progress<'_>) {
        self.0.set_length(now.total);
        self.0.set_position(now.done);
        self.0.set_message(now.file.to_owned());
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.0.finish_and_clear();
        set_bar(None);
    }
}

fn set_bar(bar: Option<ProgressBar>) {
    *BAR.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = bar;
}

fn print_above_bar(line: &str) {
    let print = || {
        // Nobody can be told that stderr is closed.
        let _ = writeln!(anstream::stderr(), "{line}");
    };
    let bar = BAR.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone();
    match bar {
        Some(bar) => bar.suspend(print),
        None => print(),
    }
}

/// Collects a log message and prints it whole.
#[derive(Default)]
struct AboveBar(Vec<u8>);

impl io::Write for AboveBar {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for AboveBar {
    fn drop(&mut self) {
        print_above_bar(String::from_utf8_lossy(&self.0).trim_end());
    }
}

/// `warning: message`.
struct OneLine;

impl<S, N> FormatEvent<S, N> for OneLine
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, cx: &FmtContext<'_, S, N>, mut out: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let (style, word) = match *event.metadata().level() {
            Level::ERROR => (RED, "error"),
            Level::WARN => (YELLOW, "warning"),
            Level::INFO => (GREEN, "info"),
            Level::DEBUG => (DIM, "debug"),
            Level::TRACE => (DIM, "trace"),
        };
        write!(out, "{style}{word}:{style:#} ")?;
        cx.format_fields(out.by_ref(), event)?;
        writeln!(out)
    }
}

fn console_width() -> usize {
    let columns = std::env::var("COLUMNS").ok().and_then(|columns| columns.parse().ok());
    columns.or_else(|| terminal_size::terminal_size().map(|(width, _)| usize::from(width.0))).unwrap_or(100)
}

/// The context of a command's calls: cancelled by Ctrl-C.
#[derive(Debug)]
pub(super) struct UntilInterrupted;

impl CallContext for UntilInterrupted {
    fn is_cancelled(&self) -> bool {
        INTERRUPTED.load(Ordering::Relaxed)
    }
    fn remaining(&self) -> Option<Duration> {
        None
    }
    fn progress(&self, _done: u64, _total: u64) {}
}

/// The same, and what it has done shows on a bar.
#[derive(Debug)]
pub(super) struct WithProgress<'a>(pub(super) &'a Progress);

impl CallContext for WithProgress<'_> {
    fn is_cancelled(&self) -> bool {
        UntilInterrupted.is_cancelled()
    }
    fn remaining(&self) -> Option<Duration> {
        None
    }
    fn progress(&self, done: u64, total: u64) {
        self.0.0.set_length(total);
        self.0.0.set_position(done);
    }
}

fn filter(level: LogLevel) -> LevelFilter {
    match level {
        LogLevel::Off => LevelFilter::OFF,
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
    }
}
