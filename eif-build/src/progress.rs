//! Progress on standard error, where somebody watches.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// A bar of so many steps; a spinner where nobody knows how many. Nothing is drawn where standard error is no terminal.
pub fn bar(steps: u64, what: &'static str) -> ProgressBar {
    let len = (steps > 0).then_some(steps);
    let bar = ProgressBar::with_draw_target(len, ProgressDrawTarget::stderr()).with_message(what);
    bar.enable_steady_tick(Duration::from_millis(100));
    let template = if steps > 0 { "{msg} [{bar:40}] {elapsed}" } else { "{spinner} {msg} {elapsed}" };
    match ProgressStyle::with_template(template) {
        Ok(style) => bar.with_style(style.progress_chars("=> ")),
        Err(_) => bar,
    }
}
