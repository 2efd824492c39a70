//! Who leads: the lead is given, kept, lost and given again, as a Lease does it. Another replica leads meanwhile.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until};

use crate::consul::store::Node;
use crate::oracle::Origin;
use crate::planted_faults::PlantedFault;
use crate::setup::{MARKER, Mode};
use crate::sim::{Sim, State};

/// How long a renewal makes a replica lead: a Lease of 15 s, less its margin.
const LASTS: Duration = Duration::from_millis(11_250);
/// How long a request to an agent may take after that.
const MARGIN: Duration = Duration::from_millis(3_750);
/// Between two renewals.
const RENEWAL: Duration = Duration::from_millis(3_750);
/// Between two looks whether the lead is still there.
const LOOK: Duration = Duration::from_secs(1);
/// Longer than any run.
const FOR_EVER: Duration = Duration::from_secs(100_000);

/// What is true of the lead of the present life.
#[derive(Default)]
pub struct Leadership {
    /// Until when the present life leads; none while it does not. It always leads where there is no election.
    until: Option<Instant>,
    /// When the present life was last told that it does not lead any more.
    told: Option<Instant>,
    /// Another replica has written since the present life last listed what Consul has.
    pub is_unread: bool,
    /// Another replica has written since the present life began.
    pub another_led: bool,
    /// Held by each write that is under way.
    pub under_way: Arc<()>,
}

/// How a lead ends.
#[derive(Clone, Copy, Debug)]
enum Loss {
    /// The replica hears at once that another one has the Lease.
    Told,
    /// No renewal goes through. The replica hears of it after this time, if at all.
    Silent { told_after: Duration },
}

impl State {
    /// Whether the present life may begin requests.
    pub fn leads(&self) -> bool {
        !self.setup.elects || self.leadership.until.is_some_and(|until| Instant::now() < until)
    }

    /// Whether the present life may write to Kubernetes: what it has begun may leave in the very moment in which it is told
    /// that it does not lead any more.
    pub fn may_write(&self) -> bool {
        self.leads() || self.leadership.told == Some(Instant::now())
    }

    /// Whether nothing but the engine keeps to the lead.
    pub fn has_no_write_lease(&self) -> bool {
        use PlantedFault::{LeadGivenBackEarly, LeadIgnored, LeadWithoutEnd};
        matches!(self.setup.planted, Some(LeadGivenBackEarly | LeadIgnored | LeadWithoutEnd))
    }

    /// Another life begins: it does not lead yet, and knows nothing.
    pub fn begin_life(&mut self) {
        self.leadership.until = None;
        self.leadership.is_unread = false;
        self.leadership.another_led = false;
    }

    /// The lead is given back.
    pub fn nobody_leads(&mut self) {
        self.leadership.until = None;
    }

    fn lead_until(&mut self, leads: &watch::Sender<Option<Instant>>, until: Option<Instant>) {
        self.leadership.told = until.is_none().then(Instant::now);
        self.leadership.until = until;
        let endless = self.setup.planted == Some(PlantedFault::LeadWithoutEnd);
        leads.send_replace(until.map(|until| if endless { until + FOR_EVER } else { until }));
    }

    /// For the statistics and the trace.
    fn note_loss(&mut self, how: &'static str) {
        let under_way = Arc::strong_count(&self.leadership.under_way) - 1;
        self.stats.count(how);
        if under_way > 0 {
            self.stats.count("leads lost with writes under way");
        }
        self.trace(|| format!("{how}; {under_way} writes are under way"));
    }

    /// Another replica leads, takes the marker, and writes.
    fn rival_leads(&mut self) {
        if self.calm || self.setup.name_taken {
            return;
        }
        self.stats.count("other leaders that wrote");
        self.trace(|| "another replica leads and writes");
        self.raise_term();
        for _ in 0..self.random.leadership.u8(1..4) {
            self.change_ours();
        }
        self.leadership.is_unread = true;
        self.leadership.another_led = true;
        self.observe(&Origin::Others);
    }

    /// Another Lictor than the one that lives takes the marker, where there is one.
    pub fn raise_term(&mut self) {
        let marker = self.consul.store.node(MARKER).map(|marker| (**marker).clone());
        if let Some(Node { mut meta, node, address, .. }) = marker {
            let term = meta.get("lictor-term").and_then(|term| term.parse().ok()).unwrap_or(0_u64);
            meta.insert("lictor-term".to_owned(), (term + 1).to_string());
            self.consul.store.index += 1;
            self.consul.store.set_node(Node { node, address, meta, ..Node::default() });
        }
    }
}

/// Ready when a request to an agent is given up, since its time is over by which the lead was to be renewed. What is
/// late in the catalog the fence keeps out.
pub async fn gives_up(sim: &Sim) {
    loop {
        let ends = {
            let state = sim.state();
            let is_bound = state.setup.elects && state.setup.mode == Mode::Agent && !state.has_no_write_lease();
            is_bound.then(|| state.leadership.until.map(|until| until + MARGIN))
        };
        let now = Instant::now();
        match ends {
            None => std::future::pending().await,
            Some(Some(ends)) if now < ends => sleep_until(ends.min(now + LOOK)).await,
            Some(_) => return,
        }
    }
}

/// Gives the lead to a life of Lictor and takes it away, until nothing changes any more.
pub async fn lead(sim: &Sim, leads: &watch::Sender<Option<Instant>>) {
    if !sim.state().setup.elects {
        std::future::pending::<()>().await;
    }
    loop {
        let length = {
            let mut state = sim.state();
            state.stats.count("leads begun");
            state.trace(|| "leads");
            let most = *state.random.leadership.choice(&[2_000, 15_000, 60_000]).unwrap_or(&2_000);
            state.random.leadership.u64(1..most)
        };
        let end = Instant::now() + Duration::from_millis(length);
        loop {
            let now = Instant::now();
            let calm = sim.state().calm;
            sim.state().lead_until(leads, Some(now + if calm { FOR_EVER } else { LASTS }));
            if calm {
                std::future::pending::<()>().await;
            }
            if now >= end {
                break;
            }
            sleep_until(end.min(now + RENEWAL)).await;
        }
        lose(sim, leads).await;
        let (gap, rival) = {
            let mut state = sim.state();
            let most = *state.random.leadership.choice(&[50, 5_000, 20_000]).unwrap_or(&50);
            (Duration::from_millis(state.random.leadership.u64(1..most)), state.random.leadership.bool())
        };
        if rival {
            // It waits for the Lease to end.
            sleep(MARGIN).await;
            sleep(gap / 2).await;
            sim.state().rival_leads();
            sim.consul_has_moved();
            sleep(gap / 2).await;
        } else {
            sim.state().stats.count("leads given again without another leader");
            sleep(gap).await;
        }
    }
}

async fn lose(sim: &Sim, leads: &watch::Sender<Option<Instant>>) {
    let loss = {
        let random = &mut sim.state().random.leadership;
        let after = Duration::from_millis(random.u64(0..3_000));
        if random.bool() { Loss::Told } else { Loss::Silent { told_after: after } }
    };
    match loss {
        Loss::Told => {
            let mut state = sim.state();
            state.note_loss("leads lost: told at once");
            state.lead_until(leads, None);
        }
        Loss::Silent { told_after } => {
            let until = sim.state().leadership.until;
            sleep_until(until.unwrap_or_else(Instant::now)).await;
            sim.state().note_loss("leads lost: past their end");
            sleep(told_after).await;
            sim.state().lead_until(leads, None);
        }
    }
}
