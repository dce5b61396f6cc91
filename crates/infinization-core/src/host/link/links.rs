//! The handle through which links are asked about and changed.

use std::sync::Arc;
use std::time::Duration;

use nix::errno::Errno;
use rtnetlink::packet_core::{NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::link::{LinkAttribute, LinkMessage};
use rtnetlink::{LinkMessageBuilder, LinkUnspec};
use tokio::sync::Mutex;

use super::connection::{Connection, ask};
use super::error::{LinkError, Refusal};
use super::record::Link;
use super::watch::LinkWatch;
use crate::types::LinkName;

/// The kernel answers within a few hundred milliseconds even while it deletes many links.
const DEADLINE: Duration = Duration::from_secs(10);
/// Pauses before asking again where the kernel is out of buffers or another change is under way:
/// there is no event to wait for.
const BACK_OFF: [Duration; 3] = [
    Duration::from_millis(10),
    Duration::from_millis(40),
    Duration::from_millis(160),
];

/// A handle on the links of one network namespace: that of the thread that first uses it.
///
/// Clones share one netlink connection, which is opened by the first request, renewed if it breaks,
/// and closed with the last clone.
#[derive(Debug, Clone, Default)]
pub struct Links {
    connection: Arc<Mutex<Option<Connection>>>,
}

impl Links {
    /// A handle; the host is not touched yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// The link of this name, if there is one.
    pub async fn find(&self, name: &LinkName) -> Result<Option<Link>, LinkError> {
        let question = RouteNetlinkMessage::GetLink(named(name).build());
        match self.request(question, NLM_F_ACK).await {
            // A link that cannot be decoded must not pass for an absent one.
            Ok(answers) => match links_in(answers).next() {
                None => Err(Refusal::Unreadable.of("looking up", name)),
                found => Ok(found),
            },
            Err(refusal) if refusal.errno() == Some(Errno::ENODEV) => Ok(None),
            Err(refusal) => Err(refusal.of("looking up", name)),
        }
    }

    /// All links of the namespace, by ascending index.
    pub async fn list(&self) -> Result<Vec<Link>, LinkError> {
        let question = RouteNetlinkMessage::GetLink(LinkMessage::default());
        let answers = self.request(question, NLM_F_DUMP).await;
        let mut links: Vec<_> =
            answers
                .map(|answers| links_in(answers).collect())
                .map_err(|source| LinkError::List {
                    what: "interfaces",
                    source,
                })?;
        links.sort_by_key(|link| link.index);
        Ok(links)
    }

    /// Raises the link (`IFF_UP`); it may be up already.
    pub async fn set_up(&self, name: &LinkName) -> Result<(), LinkError> {
        self.set("raising", name, named(name).up()).await
    }

    /// Takes the link down; it may be down already.
    pub async fn set_down(&self, name: &LinkName) -> Result<(), LinkError> {
        self.set("taking down", name, named(name).down()).await
    }

    /// Makes the link a port of `bridge`; it may be one already, or one of another bridge.
    pub async fn set_master(&self, name: &LinkName, bridge: &LinkName) -> Result<(), LinkError> {
        let master = self.find_bridge(bridge).await?;
        let port = named(name).controller(master.index);
        let outcome = self.set("attaching", name, port).await;
        outcome.map_err(|error| match error.errno() {
            Some(Errno::EXFULL) => LinkError::BridgeFull {
                name: name.clone(),
                bridge: bridge.clone(),
            },
            _ => error,
        })
    }

    /// Gives the link an alias: words for people, up to 255 bytes.
    pub(in crate::host) async fn set_alias(
        &self,
        name: &LinkName,
        alias: &str,
    ) -> Result<(), LinkError> {
        let alias = LinkAttribute::IfAlias(alias.to_owned());
        let change = named(name).append_extra_attribute(alias);
        self.set("giving an alias to", name, change).await
    }

    /// Makes the link a port of no bridge.
    pub async fn set_nomaster(&self, name: &LinkName) -> Result<(), LinkError> {
        self.set("detaching", name, named(name).nocontroller())
            .await
    }

    /// Deletes the link; it may be gone already.
    pub async fn delete(&self, name: &LinkName) -> Result<(), LinkError> {
        self.remove(name, named(name).build()).await
    }

    /// Deletes the link with this index, so that a successor of the same name is not hit.
    pub(in crate::host) async fn delete_exactly(
        &self,
        name: &LinkName,
        index: u32,
    ) -> Result<(), LinkError> {
        self.remove(name, LinkUnspec::new_with_index(index).build())
            .await
    }

    /// The link called `bridge`, which must be a bridge.
    pub(in crate::host) async fn find_bridge(&self, bridge: &LinkName) -> Result<Link, LinkError> {
        match self.find(bridge).await? {
            Some(link) if link.is_bridge() => Ok(link),
            Some(link) => Err(LinkError::NotABridge {
                name: bridge.clone(),
                kind: link.kind,
            }),
            None => Err(LinkError::BridgeNotFound {
                bridge: bridge.clone(),
            }),
        }
    }

    /// A subscription to the changes of this thread's network namespace.
    pub fn watch(&self) -> Result<LinkWatch, LinkError> {
        LinkWatch::open()
    }

    /// Waits until the link of this name (or its absence) satisfies `wanted`, and gives it.
    ///
    /// The kernel's announcements wake it; what counts is what the kernel answers then.
    pub async fn wait_until(
        &self,
        name: &LinkName,
        wanted: impl Fn(Option<&Link>) -> bool,
        deadline: Duration,
    ) -> Result<Option<Link>, LinkError> {
        let waiting = async {
            let mut watch = self.watch()?;
            loop {
                let link = self.find(name).await?;
                if wanted(link.as_ref()) {
                    return Ok(link);
                }
                while !watch.next().await?.concerns(name.as_str()) {}
            }
        };
        let unchanged = |_elapsed| LinkError::Unchanged {
            name: name.clone(),
            deadline,
        };
        tokio::time::timeout(deadline, waiting)
            .await
            .map_err(unchanged)?
    }

    async fn set(
        &self,
        action: &'static str,
        name: &LinkName,
        change: LinkMessageBuilder<LinkUnspec>,
    ) -> Result<(), LinkError> {
        let change = RouteNetlinkMessage::SetLink(change.build());
        let outcome = self.request(change, NLM_F_ACK).await;
        outcome
            .map(drop)
            .map_err(|refusal| refusal.of(action, name))
    }

    async fn remove(&self, name: &LinkName, link: LinkMessage) -> Result<(), LinkError> {
        let deletion = RouteNetlinkMessage::DelLink(link);
        match self.request(deletion, NLM_F_ACK).await {
            Ok(_) => Ok(()),
            Err(refusal) if refusal.errno() == Some(Errno::ENODEV) => Ok(()),
            Err(refusal) => Err(refusal.of("deleting", name)),
        }
    }

    /// Puts a request, again after a pause where the kernel could not serve it just then.
    pub(in crate::host) async fn request(
        &self,
        message: RouteNetlinkMessage,
        flags: u16,
    ) -> Result<Vec<RouteNetlinkMessage>, Refusal> {
        for pause in BACK_OFF {
            match self.request_once(message.clone(), flags).await {
                Err(refusal) if passes(&refusal, flags) => tokio::time::sleep(pause).await,
                outcome => return outcome,
            }
        }
        self.request_once(message, flags).await
    }

    async fn request_once(
        &self,
        message: RouteNetlinkMessage,
        flags: u16,
    ) -> Result<Vec<RouteNetlinkMessage>, Refusal> {
        let asking = async {
            let handle = self.handle().await.map_err(Refusal::Unopened)?;
            ask(handle, message, flags).await
        };
        tokio::time::timeout(DEADLINE, asking)
            .await
            .unwrap_or(Err(Refusal::Late(DEADLINE)))
    }

    async fn handle(&self) -> std::io::Result<rtnetlink::Handle> {
        let mut slot = self.connection.lock().await;
        match slot.as_ref() {
            Some(connection) if !connection.is_over() => Ok(connection.handle()),
            _ => Ok(slot.insert(Connection::open().await?).handle()),
        }
    }
}

/// Whether the refusal may pass by itself (F26). A creation whose answer was lost is not repeated:
/// it would find its own link.
fn passes(refusal: &Refusal, flags: u16) -> bool {
    match refusal {
        Refusal::Lost => flags & NLM_F_CREATE == 0,
        _ => matches!(
            refusal.errno(),
            Some(Errno::EBUSY | Errno::ENOBUFS | Errno::EINTR | Errno::EAGAIN)
        ),
    }
}

fn named(name: &LinkName) -> LinkMessageBuilder<LinkUnspec> {
    LinkUnspec::new_with_name(name.as_str())
}

fn links_in(answers: Vec<RouteNetlinkMessage>) -> impl Iterator<Item = Link> {
    answers.into_iter().filter_map(|answer| match answer {
        RouteNetlinkMessage::NewLink(message) => Some(Link::from_message(message)),
        _ => None,
    })
}
