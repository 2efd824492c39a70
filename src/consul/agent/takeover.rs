//! Taking over what another cluster of our name has left with the agent.
//!
//! Agents cannot be fenced. So one instance of each resource of the other cluster gets a meta pair that its Lictor would
//! take off again at its next resync, and our mark comes only after that has not happened.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures::future::BoxFuture;

use super::Agent;
use crate::consul::takeover::{self, Left, TAKEOVER, Taken, Takeover};
use crate::model::desired::Placement;
use crate::model::diff::Op;
use crate::model::ids::{Identity, ResourceKey, Str};
use crate::model::registration::{Ownership, Registration, Row, RowKey};
use crate::ports::{Bundle, Outcome, Registry, Rows, Unavailable};

/// Taking over through one agent.
pub struct AgentTakeover {
    /// The agent as a Lictor of the other cluster sees it.
    theirs: Agent,
    ours: Identity,
    /// The instances that were changed for the other cluster to put right.
    challenged: Mutex<Vec<RowKey>>,
}

impl AgentTakeover {
    /// From the cluster of our name with this uid, through an agent of ours.
    #[must_use]
    pub fn new(agent: Agent, from: &Str) -> Self {
        let ours = agent.identity.clone();
        let theirs = Agent { identity: Identity { uid: from.clone(), ..ours.clone() }, ..agent };
        Self { theirs, ours, challenged: Mutex::default() }
    }

    fn challenged(&self) -> MutexGuard<'_, Vec<RowKey>> {
        self.challenged.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn look(&self) -> Result<Left, Unavailable> {
        // It forgets what it knows: whose an instance is goes by its mark alone here.
        let placement = self.theirs.introduce().await?;
        let (mut rows, mut own) = (Rows::new(), Rows::new());
        for (key, mut row) in self.theirs.rows().await? {
            if row.is_ours() {
                rows.insert(key, row);
                continue;
            }
            row.ownership = Ownership::of(&self.ours, &key.id, &row.registration.meta, false);
            if row.is_ours() {
                own.insert(key, row);
            }
        }
        Ok(Left { placement, rows, own, nodes: [].into(), marker: None })
    }

    async fn challenge_one_of_each(&self) -> Result<bool, Unavailable> {
        let left = self.look().await?;
        let mut one_of_each: BTreeMap<ResourceKey, (RowKey, Arc<Registration>)> = BTreeMap::new();
        for (key, Row { ownership, registration, .. }) in left.rows {
            // With another agent it may be out of reach.
            let Placement::Agent { node } = &left.placement else { continue };
            if let (Ownership::Ours(owner), true) = (ownership, key.node == *node) {
                one_of_each.entry(owner).or_insert((key, registration));
            }
        }
        let changed = one_of_each.into_values();
        let changed = changed.map(|(key, registration)| (key, takeover::challenged(&registration, &self.ours.uid)));
        let (written, refused) = self.rewrite(changed).await?;
        match refused {
            Some(words) if written.is_empty() => Err(Unavailable::transient(words)),
            _ => {
                let is_any = !written.is_empty();
                *self.challenged() = written;
                Ok(is_any)
            }
        }
    }

    async fn is_put_right(&self) -> Result<bool, Unavailable> {
        let challenged = self.challenged().clone();
        let rows = self.theirs.rows().await?;
        let stands = |key: &RowKey| {
            let pair = rows.get(key).and_then(|row| row.registration.meta.get(TAKEOVER));
            pair == Some(&self.ours.uid)
        };
        Ok(!challenged.iter().all(stands))
    }

    async fn take_all(&self) -> Result<Taken, Unavailable> {
        if self.is_put_right().await? {
            return Err(takeover::still_writes());
        }
        let left = self.look().await?.rows.into_iter();
        let changed = left.map(|(key, row)| (key, takeover::taken(&row.registration, &self.ours.uid)));
        let (written, refused) = self.rewrite(changed).await?;
        self.challenged().clear();
        Ok(Taken { instances: written.len(), nodes: 0, refused })
    }

    /// Writes instances anew, their checks left alone; of one that is gone nothing. Answers which were written, and what
    /// was said of the first one that was refused.
    async fn rewrite(
        &self,
        changed: impl Iterator<Item = (RowKey, Registration)>,
    ) -> Result<(Vec<RowKey>, Option<String>), Unavailable> {
        let mut by_node: BTreeMap<Str, Vec<Op>> = BTreeMap::new();
        for (key, registration) in changed {
            let node = key.node.clone();
            by_node.entry(node).or_default().push(Op::Disown { key, registration: Arc::new(registration) });
        }
        let (mut written, mut refused) = (Vec::new(), None);
        for (node, ops) in by_node {
            let bundle = Bundle { node, address: None, ops, alone: false };
            for (op, outcome) in bundle.ops.iter().zip(self.theirs.apply(&bundle).await) {
                match outcome {
                    Outcome::Written { .. } => written.push(op.key().clone()),
                    Outcome::Refused(words) => _ = refused.get_or_insert_with(|| format!("{}: {words}", op.key())),
                    Outcome::NotTried(outage) | Outcome::Unknown(outage) => return Err(outage),
                }
            }
        }
        Ok((written, refused))
    }
}

impl Takeover for AgentTakeover {
    fn survey(&self) -> BoxFuture<'_, Result<Left, Unavailable>> {
        Box::pin(self.look())
    }

    fn challenge(&self) -> BoxFuture<'_, Result<bool, Unavailable>> {
        Box::pin(self.challenge_one_of_each())
    }

    fn is_answered(&self) -> BoxFuture<'_, Result<bool, Unavailable>> {
        Box::pin(self.is_put_right())
    }

    fn take(&self) -> BoxFuture<'_, Result<Taken, Unavailable>> {
        Box::pin(self.take_all())
    }
}
