//! Starting the operator.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Result;
use lictor_testbed::Operator;

use crate::fixture::{Fixture, LICTOR, Mode, SOON, arg};

/// An operator that is to be started.
pub(crate) struct Launch<'a> {
    fixture: &'a Fixture,
    consul: String,
    namespace: String,
    kubeconfig: PathBuf,
    resync: &'a str,
    args: Vec<String>,
    envs: Vec<(&'a str, String)>,
}

impl<'a> Launch<'a> {
    /// One for the fixture's namespace, cluster and Consul, that looks at Consul every second.
    pub(crate) fn new(fixture: &'a Fixture) -> Self {
        Self {
            fixture,
            consul: fixture.consul_address(),
            namespace: fixture.namespace.name().to_owned(),
            kubeconfig: fixture.kubeconfig.clone(),
            resync: "1s",
            args: Vec::new(),
            envs: Vec::new(),
        }
    }

    /// Another address for Consul.
    pub(crate) fn consul(mut self, address: &str) -> Self {
        address.clone_into(&mut self.consul);
        self
    }

    /// Another cluster.
    pub(crate) fn kubeconfig(mut self, kubeconfig: &Path) -> Self {
        kubeconfig.clone_into(&mut self.kubeconfig);
        self
    }

    /// Another namespace in place of the fixture's.
    pub(crate) fn namespace(mut self, name: &str) -> Self {
        name.clone_into(&mut self.namespace);
        self
    }

    /// No looks at Consul that nothing asks for.
    pub(crate) fn without_resyncs(mut self) -> Self {
        self.resync = "1h";
        self
    }

    /// A token for Consul.
    pub(crate) fn token(mut self, token: &str) -> Self {
        self.envs.push(("CONSUL_HTTP_TOKEN", token.to_owned()));
        self
    }

    /// Another flag.
    pub(crate) fn flag(mut self, name: &str, value: &str) -> Self {
        self.args.extend([name.to_owned(), value.to_owned()]);
        self
    }

    /// Lets resources have checks where no agent runs them: consul-esm does, which [`Fixture::esm`] starts.
    pub(crate) fn with_checks(self) -> Self {
        match self.fixture.mode {
            Mode::Agent => self,
            Mode::Catalog => self.switch("--consul-esm"),
        }
    }

    /// Another flag, without a value.
    pub(crate) fn switch(mut self, name: &str) -> Self {
        self.args.push(name.to_owned());
        self
    }

    /// Starts it.
    pub(crate) fn start(self) -> Result<Arc<Operator>> {
        let mut args = vec![
            "--registration",
            self.fixture.mode.as_str(),
            "--cluster-name",
            &self.fixture.cluster,
            "--namespace",
            &self.namespace,
            "--consul-address",
            &self.consul,
            "--kubeconfig",
            arg(&self.kubeconfig)?,
            "--resync-interval",
            self.resync,
            "--log-level",
            "info,lictor=debug",
        ];
        args.extend(self.args.iter().map(String::as_str));
        let envs: Vec<(&str, &str)> = self.envs.iter().map(|(name, value)| (*name, value.as_str())).collect();
        Ok(self.fixture.keep(Operator::start(Path::new(LICTOR), &args, &envs)?))
    }

    /// Starts it and waits until it is ready.
    pub(crate) async fn ready(self) -> Result<Arc<Operator>> {
        let operator = self.start()?;
        operator.wait_ready(SOON).await?;
        Ok(operator)
    }
}
