//! What was said of nodes: each thing once.

use lockstep_core::id::NodeId;
use std::collections::BTreeMap;

/// Why something is said of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reason {
    BadAnnotation,
    NoGuard,
    MayGo,
    Waits,
    NotHeld,
}

/// What it is about: of each only the last word counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum About {
    Annotation,
    Guard,
    Drain,
}

impl Reason {
    /// How events call it.
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::BadAnnotation => "BadAnnotation",
            Self::NoGuard => "NoGuard",
            Self::MayGo => "MayGo",
            Self::Waits => "DrainWaits",
            Self::NotHeld => "DrainNotHeld",
        }
    }

    pub(super) fn is_bad(self) -> bool {
        self != Self::MayGo
    }

    fn about(self) -> About {
        match self {
            Self::BadAnnotation => About::Annotation,
            Self::NoGuard => About::Guard,
            Self::MayGo | Self::Waits | Self::NotHeld => About::Drain,
        }
    }
}

/// What was said last.
#[derive(Debug, Default)]
pub(super) struct Told(BTreeMap<(NodeId, About), String>);

impl Told {
    /// Notes that something is said. Returns whether it was not what was said before.
    pub(super) fn is_news(&mut self, node: &NodeId, reason: Reason, what: &str) -> bool {
        let before = self.0.insert((node.clone(), reason.about()), what.to_owned());
        before.as_deref() != Some(what)
    }

    /// It is so no more: if it is again, that is news.
    pub(super) fn forget(&mut self, node: &NodeId, about: About) {
        self.0.remove(&(node.clone(), about));
    }

    /// Forgets all nodes that are not there.
    pub(super) fn retain(&mut self, is_there: impl Fn(&NodeId) -> bool) {
        self.0.retain(|(node, _), _| is_there(node));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_about_something_else_does_not_make_it_news_again() {
        let (mut told, n1) = (Told::default(), NodeId::new("n1").unwrap());
        assert!(told.is_news(&n1, Reason::BadAnnotation, "yes"));
        assert!(told.is_news(&n1, Reason::Waits, "v"));
        assert!(!told.is_news(&n1, Reason::BadAnnotation, "yes"));
        assert!(!told.is_news(&n1, Reason::Waits, "v"));
        assert!(told.is_news(&n1, Reason::MayGo, "all well"));
        assert!(told.is_news(&n1, Reason::Waits, "v"), "it went back");
        told.forget(&n1, About::Drain);
        assert!(!told.is_news(&n1, Reason::BadAnnotation, "yes"));
        assert!(told.is_news(&n1, Reason::Waits, "v"));
        told.retain(|node| *node != n1);
        assert!(told.is_news(&n1, Reason::BadAnnotation, "yes"));
    }
}
