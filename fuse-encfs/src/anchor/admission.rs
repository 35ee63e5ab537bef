//! Core: what a mount asks of the anchors before it serves anything.

use super::judge::{Acceptance, Found, Rules, judge};
use super::{AdvanceError, Anchor, Anchored, Anchors, FreshnessError};

/// Times that the anchor is asked. A request of an earlier mount may still arrive meanwhile.
const TRIES: u32 = 5;

/// Judges a recovered state before anything is written: first by what the guest remembers, then by
/// the anchor. Gives what the anchor holds. `pause` is called before a further try, with its
/// number.
///
/// A mount without writing ends here: it advances nothing.
pub(crate) fn admit(
    anchors: &Anchors,
    found: &Found<'_>,
    rules: &Rules,
    pause: &dyn Fn(u32),
) -> Result<Option<Anchored>, FreshnessError> {
    if let Some(guest) = &anchors.guest {
        // The guest's memory is new with each guest: that it is empty means nothing.
        let found = Found {
            anchored_once: false,
            ..*found
        };
        report(judge(guest.last().as_ref(), &found, rules)?, "guest");
    }
    let anchor = &*anchors.anchor;
    let (loaded, acceptance) = load_and_judge(anchor, found, rules, pause)?;
    report(acceptance, anchor.kind());
    Ok(loaded)
}

/// Moves the anchor from what [`admit`] found in it to the first durable head of this mount, and
/// returns once it has taken it. Nothing is served before, and no checkpoint written.
///
/// A conflict is no fork yet: a request that an earlier mount left on its way may have arrived. If
/// what the anchor holds now is a state that this history went through as well, it goes on.
pub(crate) fn anchor_mount(
    anchors: &Anchors,
    loaded: Option<Anchored>,
    first: Anchored,
    (found, rules): (&Found<'_>, &Rules),
    pause: &dyn Fn(u32),
) -> Result<(), FreshnessError> {
    let anchor = &*anchors.anchor;
    let mut prev = loaded;
    let mut failure = AdvanceError::Conflict;
    for attempt in 0..TRIES {
        if attempt > 0 {
            pause(attempt);
        }
        failure = match anchor.advance(prev.as_ref(), &first) {
            Ok(()) => {
                remember(anchors, first);
                return Ok(());
            }
            Err(failure) => failure,
        };
        if matches!(failure, AdvanceError::Unknown(_)) {
            continue;
        }
        match anchor.load() {
            // It was taken before, and the answer was lost.
            Ok(Some(held)) if held == first => {
                remember(anchors, first);
                return Ok(());
            }
            Ok(held) => {
                judge(held.as_ref(), found, rules)?;
                prev = held;
            }
            Err(e) if e.is_final() => return Err(e.into()),
            // What is held is not known: the next try finds out.
            Err(_) => {}
        }
    }
    Err(FreshnessError::NotTaken(failure))
}

fn remember(anchors: &Anchors, first: Anchored) {
    if let Some(guest) = &anchors.guest {
        guest.record(first);
    }
}

fn load_and_judge(
    anchor: &dyn Anchor,
    found: &Found<'_>,
    rules: &Rules,
    pause: &dyn Fn(u32),
) -> Result<(Option<Anchored>, Acceptance), FreshnessError> {
    let mut attempt = 0;
    loop {
        attempt += 1;
        let failure = match try_once(anchor, found, rules) {
            Ok(done) => return Ok(done),
            Err(FreshnessError::Anchor(e)) if e.is_final() => return Err(e.into()),
            Err(failure) if attempt == TRIES => return Err(failure),
            Err(failure) => failure,
        };
        tracing::warn!(
            error_code = failure.code(),
            attempt,
            "the anchor does not confirm the volume; it is asked again"
        );
        pause(attempt);
    }
}

fn try_once(
    anchor: &dyn Anchor,
    found: &Found<'_>,
    rules: &Rules,
) -> Result<(Option<Anchored>, Acceptance), FreshnessError> {
    let loaded = anchor.load()?;
    let acceptance = judge(loaded.as_ref(), found, rules)?;
    Ok((loaded, acceptance))
}

fn report(acceptance: Acceptance, anchor: &'static str) {
    match acceptance {
        Acceptance::Overridden => tracing::warn!(
            error_code = "fs.rollback_accepted",
            anchor,
            "the volume is opened although the anchor does not confirm it: its head is named in the \
             configuration"
        ),
        Acceptance::Met | Acceptance::New | Acceptance::Sealed => {
            tracing::debug!(anchor, by = ?acceptance, "the anchor confirms the volume");
        }
    }
}
