//! Starting the operator of a scenario.

use std::path::Path;
use std::sync::Arc;

use anyhow::Result;
use lictor_testbed::{Mode, Operator};

use crate::fixture::{Fixture, LICTOR, SOON};

/// An operator that is to be started.
pub(crate) struct Launch<'a> {
    fixture: &'a Fixture,
    launch: lictor_testbed::Launch,
}

impl<'a> Launch<'a> {
    /// One for the fixture's namespace, cluster and Consul, that reads Consul every second.
    pub(crate) fn new(fixture: &'a Fixture) -> Self {
        let (kubeconfig, consul) = (&fixture.kubeconfig, fixture.consul_address());
        let launch = lictor_testbed::Launch::new(fixture.mode, &fixture.cluster, kubeconfig, &consul)
            .flag("--namespace", fixture.namespace.name())
            .flag("--resync-interval", "1s")
            .flag("--log-level", "info,lictor=debug");
        Self { fixture, launch }
    }

    /// Another address for Consul.
    pub(crate) fn consul(self, address: &str) -> Self {
        self.set("--consul-address", address)
    }

    /// Another cluster.
    pub(crate) fn kubeconfig(self, kubeconfig: &Path) -> Self {
        self.set("--kubeconfig", &kubeconfig.to_string_lossy())
    }

    /// Another namespace in place of the fixture's.
    pub(crate) fn namespace(self, name: &str) -> Self {
        self.set("--namespace", name)
    }

    /// No looks at Consul that nothing asks for.
    pub(crate) fn without_resyncs(self) -> Self {
        self.set("--resync-interval", "1h")
    }

    /// A token for Consul.
    pub(crate) fn token(self, token: &str) -> Self {
        Self { launch: self.launch.env("CONSUL_HTTP_TOKEN", token), ..self }
    }

    /// A variable of the environment.
    pub(crate) fn env(self, name: &str, value: &str) -> Self {
        Self { launch: self.launch.env(name, value), ..self }
    }

    /// Another flag.
    pub(crate) fn flag(self, name: &str, value: &str) -> Self {
        Self { launch: self.launch.flag(name, value), ..self }
    }

    /// Another flag, without a value.
    pub(crate) fn switch(self, name: &str) -> Self {
        Self { launch: self.launch.switch(name), ..self }
    }

    /// Lets resources have checks where no agent runs them: consul-esm does, which [`Fixture::esm`] starts.
    pub(crate) fn with_checks(self) -> Self {
        match self.fixture.mode {
            Mode::Agent => self,
            Mode::Catalog => self.switch("--consul-esm"),
        }
    }

    /// Starts it.
    pub(crate) fn start(self) -> Result<Arc<Operator>> {
        Ok(self.fixture.keep(self.launch.start(Path::new(LICTOR))?))
    }

    /// Starts it and waits until it is ready.
    pub(crate) async fn ready(self) -> Result<Arc<Operator>> {
        let operator = self.start()?;
        operator.wait_ready(SOON).await?;
        Ok(operator)
    }

    /// Another value of a flag that it has.
    pub(crate) fn set(self, name: &str, value: &str) -> Self {
        Self { launch: self.launch.set(name, value), ..self }
    }
}
