//! A way through the states, told in words.

use lockstep_core::primary::Phase;

use crate::act::Action;
use crate::runs;
use crate::search::guarded;
use crate::words;
use crate::world::{Setup, State, seat_of};

/// Goes the way again and says what happens.
pub(crate) fn tell(setup: &Setup, way: &[Action]) -> Vec<String> {
    let mut said = Vec::new();
    let mut state = match runs::start(setup) {
        Ok(state) => state,
        Err(what) => return vec![what],
    };
    said.push(format!("it begins with {}", words::record(&state.record)));
    for action in way {
        let line = describe(&state, *action);
        let (before, phases) = (state.record.clone(), phases(&state));
        let done = guarded(&mut state, *action);
        said.push(line);
        if before != state.record {
            said.push(format!("    record: {}", words::record(&state.record)));
        }
        for (seat, phase) in phases_changed(&phases, &state) {
            said.push(format!("    p{seat} is {phase}"));
        }
        if let Err(what) = done {
            said.push(format!("    {what}"));
            said.extend(show(&state));
            break;
        }
    }
    said
}

fn phases(state: &State) -> Vec<Option<Phase>> {
    state.seats.iter().map(|s| s.machine.as_ref().map(|_| s.phase)).collect()
}

fn phases_changed(before: &[Option<Phase>], state: &State) -> Vec<(usize, String)> {
    let now = phases(state);
    let pairs = before.iter().zip(&now).enumerate().filter(|(_, (was, is))| was != is);
    let word = |phase: &Option<Phase>| phase.map_or("over".to_owned(), |p| format!("{p:?}"));
    pairs.map(|(seat, (_, is))| (seat, word(is))).collect()
}

fn show(state: &State) -> Vec<String> {
    let copies = (0..).zip(&state.copies).map(|(index, c): (usize, _)| {
        let (disk, status) = (&c.disk, c.machine.status());
        let flag = |on: bool, word| if on { word } else { "" };
        format!(
            "    r{index}: w{} (w{} durable) stamped {}, ring {}{}{}, promised {}",
            disk.content,
            disk.durable,
            disk.stamp(),
            status.ring,
            flag(disk.logged, ", logged"),
            flag(status.unclean, ", unclean"),
            status.promised
        )
    });
    copies.collect()
}

fn describe(state: &State, action: Action) -> String {
    let link = |conn| state.links.iter().find(|l| l.conn == conn);
    let ends = |conn: lockstep_core::id::Conn| {
        link(conn).map_or_else(String::new, |l| format!("p{}-r{}", seat_of(conn.0), l.copy))
    };
    match action {
        Action::Start(p) => format!("p{p} starts"),
        Action::Die(p) => format!("p{p} is killed"),
        Action::Connect(p, r) => format!("p{p} connects to r{r} again"),
        Action::Apply(p) => format!("the record store does what p{p} asked"),
        Action::ApplyLate(p, _) => format!("the record store does what p{p} asked long ago"),
        Action::Answer(p) => format!("p{p} hears from the record store"),
        Action::Unknown(p) => format!("p{p} gets no answer from the record store"),
        Action::Short(p) => format!("p{p} waits for {} ms", 10),
        Action::Long(p) => format!("p{p} waits for everything that is due"),
        Action::Write(p) => format!("the guest of p{p} writes w{}", state.judge.next),
        Action::Flush(p) => format!("the guest of p{p} flushes"),
        Action::Read(p) => format!("the guest of p{p} reads"),
        Action::Close(p) => format!("p{p} is asked to detach"),
        Action::Request(conn) => {
            let said = link(conn).and_then(|l| l.requests.front()).map(|m| words::request(m));
            format!("{} > {}", ends(conn), said.unwrap_or_default())
        }
        Action::Reply(conn) => {
            let said = link(conn).and_then(|l| l.replies.front()).map(|m| words::reply(m));
            format!("{} < {}", ends(conn), said.unwrap_or_default())
        }
        Action::Break(conn) => format!("{} breaks", ends(conn)),
        Action::TellSeat(conn) => format!("{}: the primary finds it broken", ends(conn)),
        Action::TellCopy(conn) => format!("{}: the replica finds it broken", ends(conn)),
        Action::Kill(r) => format!("r{r} is killed and starts again"),
        Action::Power(r, value) => format!("r{r} loses power and is left with w{value}"),
        Action::Clean(r) => format!("r{r} cleans its activity log"),
    }
}
