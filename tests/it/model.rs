//! Lease and fence as a model: every order in which workers, clock and database can act is tried.
//!
//! One job, three workers. A worker that freezes needs no action of its own: it is one whose
//! next action comes late. Left out: waits and hand-backs, which give an attempt back and so
//! would make the model endless. Each guard has its counterexample: without it, the checker
//! finds how the promise breaks.

use stateright::{Checker, Model, Property};
use std::collections::HashSet;

const MAX_ATTEMPTS: u8 = 2;
/// Crashes of a worker, and leases that lapse under one: more would find nothing new.
const MISFORTUNES: u8 = 4;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Phase {
    Waiting,
    Running,
    Done,
    Dead,
}

/// A worker, as far as it has to do with this job; the number is the epoch of its claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Hand {
    Idle,
    Works {
        epoch: u8,
        renewed: bool,
    },
    /// Inside its effect transaction: the fence was passed, the row is locked.
    Inside(u8),
    /// It believes that it failed; so does one that never heard the reply to its COMMIT.
    Failing(u8),
    /// Without the guard `Together`: the effect is written, the end of the job is not.
    Telling(u8),
    /// It claimed a job that had no attempts left.
    Buries(u8),
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct State {
    phase: Phase,
    epoch: u8,
    attempts: u8,
    lapsed: bool,
    hands: [Hand; 3],
    misfortunes: u8,
    /// How often the work began, and how often its effect was committed.
    starts: u8,
    effects: u8,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Action {
    Claim(usize),
    Enter(usize),
    Commit(usize),
    /// The commit goes through, its reply is lost.
    CommitUnheard(usize),
    /// The connection is lost, or the database ends the session of a frozen worker.
    Rollback(usize),
    Acknowledge(usize),
    Bury(usize),
    Renew(usize),
    Crash(usize),
    Lapse,
    Rescue,
}

/// What keeps the promises.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Guard {
    /// `enter`, `complete` and `acknowledge` compare the epoch.
    Fence,
    /// The effect and the end of the job commit together.
    Together,
    /// An attempt is counted when it is claimed, not when it fails.
    CountAtClaim,
    /// Lapsed leases are taken back.
    Rescue,
}

struct Queue {
    without: Option<Guard>,
}

impl Queue {
    fn has(&self, guard: Guard) -> bool {
        self.without != Some(guard)
    }

    fn passes(&self, state: &State, epoch: u8) -> bool {
        !self.has(Guard::Fence) || (state.phase == Phase::Running && state.epoch == epoch)
    }

    fn act(&self, s: &mut State, action: Action) -> Option<()> {
        let locked = s.hands.iter().any(|hand| matches!(hand, Hand::Inside(_)));
        match action {
            Action::Claim(w) if s.phase == Phase::Waiting && s.hands[w] == Hand::Idle => {
                (s.phase, s.epoch, s.lapsed) = (Phase::Running, s.epoch + 1, false);
                let left = s.attempts < MAX_ATTEMPTS;
                s.attempts += u8::from(left && self.has(Guard::CountAtClaim));
                s.starts += u8::from(left);
                s.hands[w] =
                    if left { Hand::Works { epoch: s.epoch, renewed: false } } else { Hand::Buries(s.epoch) };
            }
            Action::Enter(w) if !locked => {
                let Hand::Works { epoch, .. } = s.hands[w] else { return None };
                s.hands[w] = if self.passes(s, epoch) { Hand::Inside(epoch) } else { Hand::Idle };
            }
            Action::Commit(w) | Action::CommitUnheard(w) => {
                let Hand::Inside(epoch) = s.hands[w] else { return None };
                s.effects += 1;
                let unheard = matches!(action, Action::CommitUnheard(_));
                s.hands[w] = if self.has(Guard::Together) {
                    (s.phase, s.lapsed) = (Phase::Done, false);
                    if unheard { Hand::Failing(epoch) } else { Hand::Idle }
                } else {
                    Hand::Telling(epoch)
                };
            }
            Action::Rollback(w) => {
                let Hand::Inside(epoch) = s.hands[w] else { return None };
                s.hands[w] = Hand::Failing(epoch);
            }
            Action::Acknowledge(w) if !locked => {
                let (epoch, next) = match s.hands[w] {
                    Hand::Failing(epoch) if s.attempts >= MAX_ATTEMPTS => (epoch, Phase::Dead),
                    Hand::Failing(epoch) => (epoch, Phase::Waiting),
                    Hand::Telling(epoch) => (epoch, Phase::Done),
                    _ => return None,
                };
                s.hands[w] = Hand::Idle;
                if self.passes(s, epoch) {
                    (s.phase, s.lapsed) = (next, false);
                    s.attempts += u8::from(next == Phase::Waiting && !self.has(Guard::CountAtClaim));
                }
            }
            Action::Bury(w) if !locked => {
                let Hand::Buries(epoch) = s.hands[w] else { return None };
                s.hands[w] = Hand::Idle;
                if self.passes(s, epoch) {
                    (s.phase, s.lapsed) = (Phase::Dead, false);
                }
            }
            Action::Renew(w) if s.lapsed && !locked => {
                let Hand::Works { epoch, renewed: false } = s.hands[w] else { return None };
                s.hands[w] = Hand::Works { epoch, renewed: true };
                s.lapsed = !(s.phase == Phase::Running && s.epoch == epoch);
            }
            Action::Crash(w) if s.hands[w] != Hand::Idle && s.misfortunes > 0 => {
                s.misfortunes -= 1;
                s.hands[w] = Hand::Idle;
            }
            Action::Lapse if s.phase == Phase::Running && !s.lapsed => {
                // Under a worker that lives it is a misfortune; a dead one's lease always lapses.
                let held = s.hands.iter().any(|hand| hand.epoch() == Some(s.epoch));
                s.misfortunes = s.misfortunes.checked_sub(u8::from(held))?;
                s.lapsed = true;
            }
            Action::Rescue if self.has(Guard::Rescue) && s.phase == Phase::Running && s.lapsed && !locked => {
                (s.phase, s.epoch, s.lapsed) = (Phase::Waiting, s.epoch + 1, false);
            }
            _ => return None,
        }
        Some(())
    }

    /// Whether the job can still be done from here.
    fn reaches_done(&self, from: &State) -> bool {
        let (mut seen, mut next) = (HashSet::new(), vec![from.clone()]);
        while let Some(state) = next.pop() {
            if state.phase == Phase::Done {
                return true;
            }
            if seen.insert(state.clone()) {
                next.extend(self.next_states(&state));
            }
        }
        false
    }
}

impl Hand {
    fn epoch(self) -> Option<u8> {
        match self {
            Self::Idle => None,
            Self::Works { epoch, .. } => Some(epoch),
            Self::Inside(epoch) | Self::Failing(epoch) | Self::Telling(epoch) | Self::Buries(epoch) => {
                Some(epoch)
            }
        }
    }
}

impl Model for Queue {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        vec![State {
            phase: Phase::Waiting,
            epoch: 0,
            attempts: 0,
            lapsed: false,
            hands: [Hand::Idle; 3],
            misfortunes: MISFORTUNES,
            starts: 0,
            effects: 0,
        }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        actions.extend([Action::Lapse, Action::Rescue]);
        for w in 0..state.hands.len() {
            actions.extend([
                Action::Crash(w),
                Action::Renew(w),
                Action::Rollback(w),
                Action::CommitUnheard(w),
            ]);
            actions.extend([
                Action::Bury(w),
                Action::Acknowledge(w),
                Action::Claim(w),
                Action::Enter(w),
                Action::Commit(w),
            ]);
        }
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut next = last.clone();
        self.act(&mut next, action).map(|()| next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(ONCE, |_, s: &State| s.effects <= 1),
            Property::always(TOGETHER, |_, s: &State| (s.phase == Phase::Done) == (s.effects > 0)),
            Property::always(STARTS, |_, s: &State| s.starts <= MAX_ATTEMPTS),
            Property::always(HOPE, |queue: &Self, s: &State| {
                s.attempts >= MAX_ATTEMPTS || s.phase == Phase::Dead || queue.reaches_done(s)
            }),
            // "Eventually over", said of where paths end. They all do: each step uses up an epoch, a
            // renewal or a misfortune, or brings a hand nearer to idle.
            Property::always(OVER, |queue: &Self, s: &State| {
                matches!(s.phase, Phase::Done | Phase::Dead) || !queue.next_states(s).is_empty()
            }),
            Property::sometimes(TAKEN_OVER, |_, s: &State| s.phase == Phase::Done && s.epoch > 2),
            Property::sometimes(BURIED, |_, s: &State| s.phase == Phase::Dead && s.starts == MAX_ATTEMPTS),
        ]
    }
}

const ONCE: &str = "the effect is committed at most once";
const TOGETHER: &str = "a job is DONE exactly when its effect is there";
const STARTS: &str = "the work starts no more often than it may";
const HOPE: &str = "a job with attempts left can still be done";
const OVER: &str = "the job ends";
const TAKEN_OVER: &str = "a job whose worker died is done by another";
const BURIED: &str = "a job without attempts left is buried";

#[test]
fn in_every_order_of_events_the_effect_is_there_once_and_the_job_ends() {
    let checked = Queue { without: None }.checker().spawn_bfs().join();
    checked.assert_properties();
    println!("{} states, {} steps deep", checked.unique_state_count(), checked.max_depth());
    assert!(checked.unique_state_count() > 1000, "only {} states were seen", checked.unique_state_count());
}

#[test]
fn without_a_guard_the_model_shows_how_its_promise_breaks() {
    let broken = [
        (Guard::Fence, ONCE),
        (Guard::Together, ONCE),
        (Guard::CountAtClaim, STARTS),
        (Guard::Rescue, OVER),
        (Guard::Rescue, HOPE),
    ];
    for (guard, promise) in broken {
        let checked = Queue { without: Some(guard) }.checker().spawn_bfs().join();
        let Some(path) = checked.discovery(promise) else {
            panic!("without {guard:?} the model still says that {promise}");
        };
        println!("without {guard:?}: {:?}", path.into_actions());
    }
}
