//! What people see: a table that is redrawn on a terminal, lines otherwise.

mod table;

use std::io::{IsTerminal as _, Write as _};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

use self::table::{Rates, node_lines, totals};
use super::watch::Seen;
use super::workload::Progress;

/// How often a terminal is redrawn.
const REDRAW: Duration = Duration::from_millis(200);
/// How often a line is written where there is no terminal.
const LINES: Duration = Duration::from_secs(2);

/// A daemon, as the demonstration knows it.
#[derive(Clone, Debug)]
struct Daemon {
    node: String,
    word: &'static str,
}

#[derive(Debug)]
struct Scene {
    phase: String,
    daemons: Vec<Daemon>,
}

#[derive(Debug)]
struct Inner {
    begin: Instant,
    /// Words go to standard error, because standard output belongs to a program.
    aside: bool,
    /// The lines of the table, on a terminal.
    table: Option<(MultiProgress, Mutex<Vec<ProgressBar>>)>,
    scene: Mutex<Scene>,
    progress: Arc<Progress>,
}

/// Where people look. Clones are the same.
#[derive(Clone, Debug)]
pub(super) struct Screen {
    inner: Arc<Inner>,
}

impl Screen {
    /// On standard output or, `aside`, on standard error.
    pub(super) fn new(aside: bool, progress: Arc<Progress>) -> Self {
        let terminal = match aside {
            true => std::io::stderr().is_terminal(),
            false => std::io::stdout().is_terminal(),
        };
        let target =
            if aside { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::stdout() };
        let table =
            terminal.then(|| (MultiProgress::with_draw_target(target), Mutex::new(Vec::new())));
        let scene = Mutex::new(Scene { phase: String::new(), daemons: Vec::new() });
        let begin = Instant::now();
        Self { inner: Arc::new(Inner { begin, aside, table, scene, progress }) }
    }

    /// Since the beginning.
    pub(super) fn elapsed(&self) -> Duration {
        self.inner.begin.elapsed()
    }

    /// A line that stays.
    pub(super) fn say(&self, words: &str) {
        let line = format!("{:6.1} s  {words}", self.elapsed().as_secs_f64());
        match &self.inner.table {
            // Nobody is left to see it if this fails.
            Some((bars, _)) if !bars.is_hidden() => drop(bars.println(line)),
            _ => self.write(&line),
        }
    }

    /// What is being done from now on.
    pub(super) fn phase(&self, words: &str) {
        self.scene().phase = words.to_owned();
        self.say(words);
    }

    /// The daemons there are.
    pub(super) fn daemons(&self, nodes: Vec<String>) {
        let daemon = |node| Daemon { node, word: "starting" };
        self.scene().daemons = nodes.into_iter().map(daemon).collect();
    }

    /// What has become of a daemon.
    pub(super) fn daemon(&self, index: usize, word: &'static str) {
        if let Some(daemon) = self.scene().daemons.get_mut(index) {
            daemon.word = word;
        }
    }

    /// Shows the volume until what is returned is dropped.
    pub(super) fn show(&self, seen: watch::Receiver<Seen>) -> AbortOnDropHandle<()> {
        let screen = self.clone();
        AbortOnDropHandle::new(tokio::spawn(async move {
            let mut rates = Rates::new(Instant::now());
            loop {
                let pause = if screen.inner.table.is_some() { REDRAW } else { LINES };
                tokio::time::sleep(pause).await;
                let seen = seen.borrow().clone();
                screen.draw(&seen, &mut rates);
            }
        }))
    }

    /// Takes the table away.
    pub(super) fn clear(&self) {
        if let Some((bars, lines)) = &self.inner.table {
            let mut lines = lock(lines);
            // Nobody is left to see it if this fails.
            let _ = bars.clear();
            // Else each line that is dropped would show the others once more.
            bars.set_draw_target(ProgressDrawTarget::hidden());
            lines.clear();
        }
    }

    fn draw(&self, seen: &Seen, rates: &mut Rates) {
        let (phase, daemons) = {
            let scene = self.scene();
            (scene.phase.clone(), scene.daemons.clone())
        };
        let pairs: Vec<_> = daemons.iter().map(|d| (d.node.as_str(), d.word)).collect();
        let nodes = node_lines(&pairs, seen.volume.as_ref());
        let totals = totals(&self.inner.progress, rates, Instant::now());
        let Some((bars, shown)) = &self.inner.table else {
            let states: Vec<String> = nodes.iter().map(|n| n.short()).collect();
            self.say(&format!("{totals}; {}", states.join(", ")));
            return;
        };
        let mut lines = vec![String::new(), table::head()];
        lines.extend(nodes.iter().map(|n| n.row()));
        lines.push(format!("  {totals}"));
        lines.push(format!("  {:.1} s: {phase}", self.elapsed().as_secs_f64()));
        let mut shown = lock(shown);
        while shown.len() < lines.len() {
            let bar = bars.add(ProgressBar::new_spinner());
            bar.set_style(plain());
            shown.push(bar);
        }
        for (bar, line) in shown.iter().zip(lines) {
            bar.set_message(line);
        }
    }

    fn write(&self, line: &str) {
        // Nobody is left to see it if this fails.
        let _ = match self.inner.aside {
            true => writeln!(std::io::stderr().lock(), "{line}"),
            false => writeln!(std::io::stdout().lock(), "{line}"),
        };
    }

    fn scene(&self) -> MutexGuard<'_, Scene> {
        lock(&self.inner.scene)
    }
}

fn plain() -> ProgressStyle {
    ProgressStyle::with_template("{msg}").unwrap_or_else(|_| ProgressStyle::default_spinner())
}

/// What is shown is never half changed, so it can be used even after a panic elsewhere.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
