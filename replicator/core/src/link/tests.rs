use super::*;
use alloc::collections::VecDeque;
use alloc::string::ToString;
use proptest::prelude::*;

fn node(name: &str) -> NodeId {
    NodeId::new(name).expect("a legal name")
}

fn params(role: Role, name: &str, versions: (u16, u16)) -> LinkParams {
    LinkParams {
        role,
        cluster: Uuid::from_u128(7),
        node: node(name),
        process: u64::from(name.as_bytes()[0]),
        expect: None,
        min_version: versions.0,
        max_version: versions.1,
    }
}

const MS: u64 = 1000;

/// Two ends and the frames between them; a frame arrives after `delay_ms`, in order.
struct Pair {
    now: Tick,
    ends: [Link; 2],
    wire: [VecDeque<(Tick, LinkFrame)>; 2],
    /// What each end told its driver.
    told: [Vec<Effect>; 2],
    delay_ms: u64,
    /// Frames sent are lost.
    is_cut: bool,
}

impl Pair {
    fn new(initiator: LinkParams, acceptor: LinkParams) -> Self {
        let ends = [Link::new(initiator, Tick(0)), Link::new(acceptor, Tick(0))];
        let mut pair = Self {
            now: Tick(0),
            ends,
            wire: Default::default(),
            told: Default::default(),
            delay_ms: 1,
            is_cut: false,
        };
        pair.step(0, Event::Opened);
        pair.step(1, Event::Opened);
        pair
    }

    fn step(&mut self, end: usize, event: Event) {
        let mut out = Vec::new();
        self.ends[end].step(self.now, event, &mut out);
        for effect in out {
            match effect {
                Effect::Send(_) if self.is_cut => {}
                Effect::Send(frame) => {
                    self.wire[end].push_back((self.now.plus_ms(self.delay_ms), frame));
                }
                Effect::Up { .. } | Effect::Close(_) => self.told[end].push(effect),
            }
        }
        assert_eq!(self.ends[end].is_closed(), self.ends[end].deadline().is_none());
    }

    /// Runs to `until_ms`, jumping from one thing to happen to the next.
    fn run(&mut self, until_ms: u64) {
        loop {
            let wakes = self.ends.iter().filter_map(|e| e.deadline().map(|(at, _)| at));
            let arrivals = self.wire.iter().filter_map(|w| w.front().map(|(at, _)| *at));
            let Some(next) = wakes.chain(arrivals).min() else { return };
            if next > Tick(until_ms * MS) {
                self.now = Tick(until_ms * MS);
                return;
            }
            self.now = self.now.max(next);
            for end in 0..2 {
                if let Some((_, frame)) = self.wire[1 - end].pop_front_if(|(at, _)| *at <= next) {
                    self.step(end, Event::Received(frame));
                }
                self.step(end, Event::Wake);
            }
        }
    }

    fn closed(&self, end: usize) -> &CloseReason {
        match self.told[end].last() {
            Some(Effect::Close(reason)) => reason,
            other => panic!("end {end} is not closed: {other:?}"),
        }
    }
}

fn pair(initiator: (u16, u16), acceptor: (u16, u16)) -> Pair {
    let a = params(Role::Initiator, "a", initiator);
    Pair::new(a, params(Role::Acceptor, "b", acceptor))
}

#[test]
fn two_nodes_agree_on_the_highest_common_version_and_keep_the_link() {
    let mut pair = pair((1, 3), (2, 5));
    pair.run(60_000);
    let up = |name: &str| Effect::Up {
        peer: node(name),
        peer_process: u64::from(name.as_bytes()[0]),
        version: 3,
    };
    assert_eq!(pair.told, [[up("b")], [up("a")]]);
    for end in &pair.ends {
        assert_eq!(end.round_trip_us(), Some(2 * MS));
        assert!(pair.now.ms_since(end.last_heard()) <= HEARTBEAT_MS);
    }
}

#[test]
fn without_a_common_version_both_say_whom_to_upgrade() {
    let mut pair = pair((1, 2), (3, 4));
    pair.run(10_000);
    let ours = "this node speaks 1 to 2, the peer 3 to 4; upgrade this node";
    assert!(pair.closed(0).to_string().ends_with(ours), "{}", pair.closed(0));
    let theirs = "this node speaks 3 to 4, the peer 1 to 2; upgrade the peer";
    assert!(pair.closed(1).to_string().ends_with(theirs), "{}", pair.closed(1));
}

#[test]
fn another_cluster_is_refused() {
    let a = LinkParams { cluster: Uuid::from_u128(8), ..params(Role::Initiator, "a", (1, 1)) };
    let mut pair = Pair::new(a, params(Role::Acceptor, "b", (1, 1)));
    pair.run(10_000);
    assert_eq!(*pair.closed(0), CloseReason::Rejected(RejectReason::Cluster));
    assert_eq!(*pair.closed(1), CloseReason::Refused(RejectReason::Cluster));
}

#[test]
fn only_the_expected_node_may_be_at_the_other_end() {
    for wrong in [Role::Initiator, Role::Acceptor] {
        let expecting = |role, name| {
            let expect = (role == wrong).then(|| node("c"));
            LinkParams { expect, ..params(role, name, (1, 1)) }
        };
        let mut pair = Pair::new(expecting(Role::Initiator, "a"), expecting(Role::Acceptor, "b"));
        pair.run(10_000);
        let (end, found) = if wrong == Role::Initiator { (0, "b") } else { (1, "a") };
        let reason = CloseReason::WrongNode { expected: node("c"), found: node(found) };
        assert_eq!(*pair.closed(end), reason);
        assert_eq!(*pair.closed(1 - end), CloseReason::Rejected(RejectReason::WrongNode));
    }
}

#[test]
fn a_node_does_not_talk_to_its_own_name() {
    let a = params(Role::Initiator, "a", (1, 1));
    let mut pair = Pair::new(a, params(Role::Acceptor, "a", (1, 1)));
    pair.run(10_000);
    assert_eq!(*pair.closed(0), CloseReason::Rejected(RejectReason::SameNode));
    assert_eq!(*pair.closed(1), CloseReason::Refused(RejectReason::SameNode));
}

#[test]
fn a_slow_handshake_is_given_up() {
    let mut pair = pair((1, 1), (1, 1));
    pair.is_cut = true;
    pair.wire = Default::default();
    pair.run(HANDSHAKE_MS - 1);
    assert!(pair.told.iter().all(Vec::is_empty));
    pair.run(HANDSHAKE_MS);
    for end in 0..2 {
        assert_eq!(*pair.closed(end), CloseReason::HandshakeTimeout);
    }
}

#[test]
fn silence_is_noticed_after_four_heartbeats_and_not_before() {
    let mut pair = pair((1, 1), (1, 1));
    pair.run(5_000);
    pair.is_cut = true;
    pair.wire = Default::default();
    let heard = pair.ends.each_ref().map(Link::last_heard);
    let dead = heard.map(|at| at.plus_ms(SESSION_DEAD_MS).0 / MS);
    pair.run(dead[0].min(dead[1]) - 1);
    assert!(pair.ends.iter().all(Link::is_up));
    pair.run(dead[0].max(dead[1]));
    for end in 0..2 {
        assert_eq!(*pair.closed(end), CloseReason::Silent { for_ms: SESSION_DEAD_MS });
    }
}

#[test]
fn any_frame_counts_as_heard() {
    let mut pair = pair((1, 1), (1, 1));
    pair.run(1_000);
    pair.is_cut = true;
    pair.wire = Default::default();
    for ms in (2_000..20_000).step_by(1_000) {
        pair.run(ms);
        pair.step(0, Event::Heard);
    }
    assert!(pair.ends[0].is_up());
    assert_eq!(*pair.closed(1), CloseReason::Silent { for_ms: SESSION_DEAD_MS });
}

#[test]
fn a_late_wake_makes_one_ping_not_many() {
    let mut link = Link::new(params(Role::Acceptor, "b", (1, 1)), Tick(0));
    let mut out = Vec::new();
    link.step(Tick(0), Event::Opened, &mut out);
    link.step(Tick(0), Event::Received(hello()), &mut out);
    out.clear();
    link.step(Tick(1_999 * MS), Event::Wake, &mut out);
    assert_eq!(out, [Effect::Send(LinkFrame::Ping { id: 1 })]);
    assert_eq!(link.deadline(), Some((Tick(2_000 * MS), Reason::Silence)));
}

/// Both a ping and silence are overdue: a dead link is not pinged.
#[test]
fn a_wake_after_a_long_pause_closes() {
    let mut link = Link::new(params(Role::Acceptor, "b", (1, 1)), Tick(0));
    let mut out = Vec::new();
    link.step(Tick(0), Event::Opened, &mut out);
    link.step(Tick(0), Event::Received(hello()), &mut out);
    out.clear();
    link.step(Tick(9_000 * MS), Event::Wake, &mut out);
    assert_eq!(out, [Effect::Close(CloseReason::Silent { for_ms: 9_000 })]);
    link.step(Tick(9_000 * MS), Event::Opened, &mut out);
    assert_eq!(out.len(), 1, "a closed link does nothing");
}

fn hello() -> LinkFrame {
    LinkFrame::Hello {
        min_version: 1,
        max_version: 1,
        cluster: Uuid::from_u128(7),
        node: node("a"),
        process: 1,
    }
}

fn welcome(version: u16) -> LinkFrame {
    LinkFrame::Welcome { version, node: node("a"), process: 1 }
}

#[test]
fn what_comes_out_of_turn_breaks_the_protocol() {
    let cases: &[(Role, &[Event], &str)] = &[
        (Role::Acceptor, &[Event::Heard], "a frame before the handshake"),
        (Role::Acceptor, &[Event::Received(LinkFrame::Ping { id: 1 })], "a heartbeat before"),
        (Role::Acceptor, &[Event::Received(welcome(1))], "a welcome out of turn"),
        (Role::Acceptor, &[Event::Received(hello()), Event::Received(hello())], "a hello out of"),
        (
            Role::Acceptor,
            &[Event::Received(hello()), Event::Received(LinkFrame::Pong { id: 1 })],
            "an answer to a ping that was not sent",
        ),
        (Role::Initiator, &[Event::Received(hello())], "a hello out of turn"),
        (Role::Initiator, &[Event::Received(welcome(2))], "a version that was not offered"),
        (Role::Initiator, &[Event::Heard], "a frame before the handshake"),
        (Role::Initiator, &[Event::Opened], "opened twice"),
    ];
    for (role, events, why) in cases {
        let mut link = Link::new(params(*role, "b", (1, 1)), Tick(0));
        let mut out = Vec::new();
        link.step(Tick(0), Event::Opened, &mut out);
        events.iter().for_each(|event| link.step(Tick(0), event.clone(), &mut out));
        let Some(Effect::Close(reason @ CloseReason::Protocol(_))) = out.last() else {
            panic!("{role:?} {events:?} was taken: {out:?}");
        };
        assert!(reason.to_string().contains(why), "{role:?} {events:?}: {reason}");
    }
}

#[test]
fn a_refusal_reaches_the_peer() {
    let mut pair = pair((1, 1), (1, 1));
    pair.run(1_000);
    pair.step(1, Event::Refuse(RejectReason::Shutdown));
    pair.run(2_000);
    assert_eq!(*pair.closed(0), CloseReason::Rejected(RejectReason::Shutdown));
    assert_eq!(*pair.closed(1), CloseReason::Refused(RejectReason::Shutdown));
}

fn frames() -> impl Strategy<Value = LinkFrame> {
    let reason = prop_oneof![
        Just(RejectReason::Shutdown),
        Just(RejectReason::Version { min: 3, max: 9 }),
        Just(RejectReason::Unknown(99))
    ];
    prop_oneof![
        4 => Just(hello()),
        4 => (0_u16..3).prop_map(welcome),
        1 => reason.prop_map(|reason| LinkFrame::Reject { reason }),
        6 => (0_u64..9).prop_map(|id| LinkFrame::Ping { id }),
        6 => (0_u64..9).prop_map(|id| LinkFrame::Pong { id }),
    ]
}

fn events() -> impl Strategy<Value = Event> {
    prop_oneof![
        1 => Just(Event::Opened),
        8 => frames().prop_map(Event::Received),
        4 => Just(Event::Heard),
        1 => Just(Event::Refuse(RejectReason::Duplicate)),
        4 => Just(Event::Wake),
    ]
}

proptest! {
    /// Whatever a peer does: up at most once, closed at most once and for good, nothing about
    /// volumes before up, and always awake in time.
    #[test]
    fn a_link_keeps_its_promises(
        is_initiator in any::<bool>(),
        script in proptest::collection::vec((0_u64..900, events()), 1..60),
    ) {
        let role = if is_initiator { Role::Initiator } else { Role::Acceptor };
        let mut link = Link::new(params(role, "b", (1, 1)), Tick(0));
        let (mut now, mut told) = (Tick(0), Vec::new());
        link.step(now, Event::Opened, &mut told);
        for (pause_ms, event) in script {
            now = now.plus_ms(pause_ms);
            let before = link.clone();
            let mut out = Vec::new();
            link.step(now, event.clone(), &mut out);
            let is_over = |at: Tick| at <= now;
            prop_assert!(!link.deadline().is_some_and(|(at, _)| is_over(at)), "late: {:?}", link);
            prop_assert!(!before.is_closed() || out.is_empty(), "{:?} after the end", out);
            let closes = out.iter().filter(|e| matches!(e, Effect::Close(_))).count();
            prop_assert_eq!(closes, usize::from(link.is_closed() && !before.is_closed()));
            let ups = out.iter().filter(|e| matches!(e, Effect::Up { .. })).count();
            prop_assert!(ups == 0 || !before.is_up());
            let ponged = out.iter().any(|e| matches!(e, Effect::Send(LinkFrame::Pong { .. })));
            prop_assert!(!ponged || before.is_up(), "a pong before the handshake");
            told.extend(out);
        }
        let ups = told.iter().filter(|e| matches!(e, Effect::Up { .. })).count();
        prop_assert!(ups <= 1, "up {} times", ups);
    }
}
