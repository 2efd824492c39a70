//! Keeps Lictor logged in to Consul: one [`Keeper`] for each way to Consul, with a token of its own.
//!
//! A task of the keeper logs in at the first request, again at half of the token's life, and again when Consul does not
//! know the token any more. A token that was replaced is logged out when the last request that carries it has ended.
//! What to do when is decided in [`consul::login`](crate::consul::login).

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex as Lock, MutexGuard, PoisonError};
use std::time::Duration;

use futures::future::join_all;
use reqwest::header::HeaderValue;
use tokio::sync::{Mutex, watch};
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::{Http, Method, Request, Response, Transport, TransportError, sensitive};
use crate::consul::login::{Carry, Login, LoginSettings, Next, NotLoggedIn};
use crate::consul::path::path;
use crate::consul::wire::{Fault, LoginAnswer, LoginBody};
use crate::model::reasons::OutageKind;
use crate::ports::Backoff;

/// The longest time that an answer to a login or a logout may take: Consul asks Kubernetes twice.
const LOGIN_TIMEOUT: Duration = Duration::from_secs(15);

/// The longest wait until the server that is asked knows a new token. Servers that follow the leader have it a moment
/// later.
const KNOWN: Duration = Duration::from_secs(3);

/// The same limit, if the token comes from another datacenter.
const KNOWN_FROM_AFAR: Duration = Duration::from_secs(15);

/// The time between two questions whether a new token is known.
const ASK_AGAIN: Duration = Duration::from_millis(100);

/// The longest wait for the requests that carry a token which is to be logged out. Consul refuses those that are left,
/// and they are sent again with the new one.
const LEAVING: Duration = Duration::from_secs(60);

/// The time for which the logout of a token is tried that would live for ever.
const TRIED: Duration = Duration::from_secs(600);

/// The longest time that the logouts at the end may take.
const END: Duration = Duration::from_secs(5);

/// A token that a login has given, for as long as a request carries it.
#[derive(Clone, Debug)]
pub(super) struct Token(Arc<Issued>);

#[derive(Debug)]
struct Issued {
    header: HeaderValue,
    about: LoggedIn,
    /// The time at which Consul forgets it by itself.
    ends: Option<Instant>,
    /// Is dropped with the last request that carries the token.
    in_use: watch::Sender<()>,
}

impl PartialEq for Token {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Token {
    /// The header's value.
    pub(super) fn header(&self) -> &HeaderValue {
        &self.0.header
    }
}

/// The public facts about a token that a login has given.
#[derive(Clone, Debug)]
pub struct LoggedIn {
    /// The ID of the token, which is no secret.
    pub accessor: String,
    /// The roles and policies that it is bound to.
    pub bound_to: Vec<String>,
    /// The time for which it lives; none if it lives until it is logged out.
    pub lifetime: Option<Duration>,
}

/// A token that is to be logged out.
#[derive(Clone, Debug)]
struct Leaving {
    header: HeaderValue,
    accessor: String,
    ends: Option<Instant>,
}

/// Keeps one login.
pub(super) struct Keeper {
    settings: LoginSettings,
    /// The way to Consul that all requests go, without a token.
    http: Http,
    login: Lock<Login<Token>>,
    /// Tells of each change of the login.
    changed: watch::Sender<()>,
    /// True once the task runs.
    is_kept: AtomicBool,
    /// Held while an attempt is under way.
    attempt: Mutex<()>,
    /// The tokens that are to be logged out.
    leaving: Lock<Vec<Leaving>>,
    /// Says why there is no login, or why it cannot be renewed.
    trouble: watch::Sender<Option<String>>,
}

impl Keeper {
    /// Sets up a keeper that has not logged in yet, with a way to Consul that has no token; one of `logins` from here on.
    pub(super) fn new(settings: LoginSettings, http: Http, logins: &Logins) -> Arc<Self> {
        let keeper = Arc::new(Self {
            settings,
            http,
            login: Lock::default(),
            changed: watch::Sender::default(),
            is_kept: AtomicBool::default(),
            attempt: Mutex::default(),
            leaving: Lock::default(),
            trouble: logins.0.trouble.clone(),
        });
        locked(&logins.0.keepers).push(Arc::clone(&keeper));
        keeper
    }

    /// The token as it is now. Where there is none yet, it waits for one, at most as long as `limit`.
    pub(super) async fn token(self: &Arc<Self>, limit: Duration) -> Result<Token, TransportError> {
        let mut changes = self.changed.subscribe();
        self.begin();
        let token = async {
            loop {
                changes.borrow_and_update();
                match self.login().carry(Instant::now()) {
                    Carry::Token(token) => return Ok(token),
                    Carry::Fail(why) => return Err(TransportError::NotLoggedIn(why)),
                    Carry::Wait => {}
                }
                // The sender is ours.
                let _ = changes.changed().await;
            }
        };
        let late = || TransportError::NotSent("the login to Consul takes too long".to_owned());
        timeout(limit, token).await.unwrap_or_else(|_| Err(late()))
    }

    /// Begins to keep the login, if it has not yet.
    pub(super) fn begin(self: &Arc<Self>) {
        if !self.is_kept.swap(true, Ordering::SeqCst) {
            tokio::spawn(Arc::clone(self).keep());
        }
    }

    /// Notes that Consul does not know a token that a request carried.
    pub(super) fn unknown(self: &Arc<Self>, token: &Token) {
        if self.login().unknown(token, Instant::now(), &mut fastrand::Rng::new()) {
            tracing::info!(
                accessor = token.0.about.accessor,
                "Consul does not know the token of the login any more; Lictor logs in again"
            );
            // Another server may know it, so it is logged out like any other.
            self.leave(token.clone());
            self.changed.send_replace(());
        }
    }

    /// Says what may be said of the present token.
    pub(super) async fn logged_in(self: &Arc<Self>) -> Result<LoggedIn, TransportError> {
        Ok(self.token(LOGIN_TIMEOUT).await?.0.about.clone())
    }

    async fn keep(self: Arc<Self>) {
        let mut changes = self.changed.subscribe();
        loop {
            changes.borrow_and_update();
            let next = self.login().next(Instant::now());
            let until = match next {
                Next::LogIn => {
                    self.log_in().await;
                    continue;
                }
                Next::At(time) => Some(time),
                Next::Nothing => None,
            };
            let due = async {
                match until {
                    Some(time) => sleep_until(time).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = due => {}
                _ = changes.changed() => {}
            }
        }
    }

    async fn log_in(self: &Arc<Self>) {
        let _attempt = self.attempt.lock().await;
        if self.login().next(Instant::now()) != Next::LogIn {
            return;
        }
        let asked = Instant::now();
        match self.ask_for_a_token(asked).await {
            Ok(token) => {
                self.wait_until_known(&token).await;
                let LoggedIn { accessor, lifetime, .. } = &token.0.about;
                let lifetime_seconds = lifetime.map(|lifetime| lifetime.as_secs());
                let method = &self.settings.method;
                let before = self.login().logged_in(token.clone(), *lifetime, asked);
                match before {
                    None => tracing::info!(method, accessor, lifetime_seconds, "logged in to Consul"),
                    Some(before) => {
                        tracing::debug!(method, accessor, lifetime_seconds, "renewed the login to Consul");
                        self.leave(before);
                    }
                }
                if self.trouble.send_replace(None).is_some() {
                    tracing::info!("the login to Consul works again");
                }
            }
            Err(why) => {
                let now = Instant::now();
                let trouble = {
                    let mut login = self.login();
                    login.failed(why, now, &mut fastrand::Rng::new());
                    login.trouble(now)
                };
                if self.trouble.send_replace(trouble.clone()).is_none() {
                    tracing::warn!("{}", trouble.unwrap_or_default());
                }
            }
        }
        self.changed.send_replace(());
    }

    async fn ask_for_a_token(&self, asked: Instant) -> Result<Token, NotLoggedIn> {
        let LoginSettings { method, bearer_token_file, meta, .. } = &self.settings;
        let bearer_token = bearer_token(bearer_token_file).await?;
        let body = LoginBody { auth_method: method, bearer_token: &bearer_token, meta };
        let body = serde_json::to_vec(&body).map_err(|error| failing(&error.to_string()))?;
        let mut query = self.of_datacenter();
        query.extend(self.settings.namespace.as_deref().map(|namespace| ("ns", namespace)));
        query.extend(self.settings.partition.as_deref().map(|partition| ("partition", partition)));
        let request = post(path(&["acl", "login"], &query), Some(body));
        let response = self.send(request, None).await.map_err(|error| not_reached(&error))?;
        let words = String::from_utf8_lossy(&response.body);
        if response.status != 200 {
            return Err(NotLoggedIn::answered(response.status, words.trim(), &self.settings));
        }
        let not_understood = |error: &str| failing(&format!("Consul's answer to the login is not understood: {error}"));
        let answer: LoginAnswer =
            serde_json::from_slice(&response.body).map_err(|error| not_understood(&error.to_string()))?;
        let header = sensitive(&answer.secret).ok_or_else(|| not_understood("it holds no token"))?;
        let lifetime = answer.lifetime().map_err(|error| not_understood(&error))?;
        let bound_to = answer.bound_to();
        let about = LoggedIn { accessor: answer.accessor, bound_to, lifetime };
        let ends = lifetime.map(|lifetime| asked + lifetime);
        Ok(Token(Arc::new(Issued { header, about, ends, in_use: watch::Sender::default() })))
    }

    /// Waits until the server that is asked knows a token, but not for ever.
    async fn wait_until_known(&self, token: &Token) {
        let limit = if self.settings.datacenter.is_some() { KNOWN_FROM_AFAR } else { KNOWN };
        let known = async {
            loop {
                let own =
                    Request { method: Method::Get, ..post(path(&["acl", "token", "self"], &[("stale", "")]), None) };
                match self.http.exchange(own, Some(token.header())).await {
                    Ok(response) if is_unknown_token(&response) => sleep(ASK_AGAIN).await,
                    _ => return,
                }
            }
        };
        if timeout(limit, known).await.is_err() {
            tracing::warn!("Consul does not know the token of the login yet; Lictor uses it anyway");
        }
    }

    /// Logs a token out as soon as no request carries it.
    fn leave(self: &Arc<Self>, token: Token) {
        let (mut in_use, header) = (token.0.in_use.subscribe(), token.0.header.clone());
        let leaving = Leaving { header, accessor: token.0.about.accessor.clone(), ends: token.0.ends };
        drop(token);
        locked(&self.leaving).push(leaving.clone());
        let keeper = Arc::clone(self);
        tokio::spawn(async move {
            // An error says that the last one is gone; nothing is ever sent.
            let _ = timeout(LEAVING, in_use.changed()).await;
            keeper.log_out_in_the_end(&leaving).await;
        });
    }

    async fn log_out_in_the_end(&self, leaving: &Leaving) {
        let until = leaving.ends.unwrap_or_else(|| Instant::now() + TRIED);
        let mut failures = 0;
        while Instant::now() < until {
            match self.log_out(leaving).await {
                Ok(()) => return,
                Err(why) => tracing::debug!(accessor = leaving.accessor, "cannot log out of Consul yet: {why}"),
            }
            failures += 1;
            let wait = Backoff::LOGIN.wait(failures, &mut fastrand::Rng::new());
            sleep(wait).await;
        }
    }

    async fn log_out(&self, leaving: &Leaving) -> Result<(), String> {
        let request = post(path(&["acl", "logout"], &self.of_datacenter()), None);
        let response = self.send(request, Some(&leaving.header)).await.map_err(|error| error.to_string())?;
        let words = String::from_utf8_lossy(&response.body);
        // A token that Consul does not know is one that it has forgotten.
        if response.status != 200 && !is_unknown_token(&response) {
            return Err(format!("Consul answered {}: {}", response.status, words.trim()));
        }
        locked(&self.leaving).retain(|other| other.accessor != leaving.accessor);
        tracing::debug!(accessor = leaving.accessor, "logged out of Consul");
        Ok(())
    }

    /// Logs out whatever is left.
    async fn end(self: &Arc<Self>) {
        let token = self.login().end();
        self.changed.send_replace(());
        // One that comes now is logged out as well.
        let late = timeout(LOGIN_TIMEOUT.min(END), self.attempt.lock()).await.ok().and_then(|_done| self.login().end());
        for token in token.into_iter().chain(late) {
            let leaving = Leaving {
                header: token.0.header.clone(),
                accessor: token.0.about.accessor.clone(),
                ends: token.0.ends,
            };
            locked(&self.leaving).push(leaving);
        }
        let all = locked(&self.leaving).clone();
        join_all(all.iter().map(|leaving| async move {
            let done = timeout(END, self.log_out(leaving)).await;
            let why = done.unwrap_or_else(|_| Err("no answer in time".to_owned())).err();
            if let Some(why) = why {
                tracing::warn!(
                    accessor = leaving.accessor,
                    "cannot log out of Consul: {why}; the token stays there until it expires"
                );
            }
        }))
        .await;
    }

    /// Sends a request; where there are several addresses, to one after the other until one does better.
    async fn send(&self, request: Request, token: Option<&HeaderValue>) -> Result<Response, TransportError> {
        for _ in 1..self.http.addresses() {
            let answer = self.http.exchange(request.clone(), token).await;
            let is_answer = answer.as_ref().is_ok_and(|response| {
                let words = String::from_utf8_lossy(&response.body);
                !matches!(Fault::of(&words), Fault::NoLeader | Fault::RateLimited)
            });
            if is_answer {
                return answer;
            }
        }
        self.http.exchange(request, token).await
    }

    fn of_datacenter(&self) -> Vec<(&'static str, &str)> {
        self.settings.datacenter.as_deref().map(|datacenter| ("dc", datacenter)).into_iter().collect()
    }

    fn login(&self) -> MutexGuard<'_, Login<Token>> {
        locked(&self.login)
    }
}

/// The logins of this process, to be ended together.
#[derive(Clone, Default)]
pub struct Logins(Arc<All>);

#[derive(Default)]
struct All {
    keepers: Lock<Vec<Arc<Keeper>>>,
    trouble: watch::Sender<Option<String>>,
}

impl Logins {
    /// Logs all out. No request can be sent afterwards.
    pub async fn end(&self) {
        let keepers = locked(&self.0.keepers).clone();
        join_all(keepers.iter().map(Keeper::end)).await;
    }

    /// Says why there is no login, or why it cannot be renewed while its token still serves.
    #[must_use]
    pub fn trouble(&self) -> watch::Receiver<Option<String>> {
        self.0.trouble.subscribe()
    }
}

/// Says whether Consul does not know the token that the request carried; it has done nothing then.
pub(super) fn is_unknown_token(response: &Response) -> bool {
    response.status == 403 && Fault::of(&String::from_utf8_lossy(&response.body)) == Fault::UnknownToken
}

/// Reads the token of a service account; the kubelet writes a new one every hour or so.
async fn bearer_token(file: &Path) -> Result<String, NotLoggedIn> {
    let not_set_up = |why: String| NotLoggedIn { kind: OutageKind::NotSetUp, words: why };
    let text = tokio::fs::read_to_string(file).await.map_err(|error| {
        not_set_up(format!("the file {} of the service account's token is unreadable: {error}", file.display()))
    })?;
    let token = text.trim();
    if token.is_empty() {
        return Err(not_set_up(format!("the file {} of the service account's token is empty", file.display())));
    }
    Ok(token.to_owned())
}

fn failing(words: &str) -> NotLoggedIn {
    NotLoggedIn { kind: OutageKind::Failing, words: words.to_owned() }
}

fn not_reached(error: &TransportError) -> NotLoggedIn {
    NotLoggedIn { kind: OutageKind::Unreachable, words: error.to_string() }
}

fn post(path: String, body: Option<Vec<u8>>) -> Request {
    let body = body.map(Into::into);
    Request { method: Method::Post, path, body, timeout: LOGIN_TIMEOUT, last_of_connection: false }
}

fn locked<T>(lock: &Lock<T>) -> MutexGuard<'_, T> {
    lock.lock().unwrap_or_else(PoisonError::into_inner)
}
