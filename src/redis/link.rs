//! [`Link`]: one connection to Redis, made anew each time from what [`Target`] knows.

use std::time::Duration;

use ::redis::aio::MultiplexedConnection;
use ::redis::cluster::ClusterClientBuilder;
use ::redis::cluster_async::ClusterConnection;
use ::redis::cluster_routing::{MultipleNodeRoutingInfo, ResponsePolicy, RoutingInfo};
use ::redis::{
    AsyncConnectionConfig, Client, ClientTlsConfig, Cmd, ConnectionAddr, ConnectionInfo, ErrorKind,
    FromRedisValue, IntoConnectionInfo, ProtocolVersion, PushInfo, RedisConnectionInfo, RedisError,
    RedisResult, TlsCertificates, cmd, pipe,
};
use secrecy::ExposeSecret;
use tokio::sync::mpsc::UnboundedSender;
use tokio::task::JoinSet;

use super::address::{Address, Kind};

/// How long one server may take until it is connected.
const CONNECT: Duration = Duration::from_millis(900);

/// How long one sentinel may take to answer.
const SENTINEL: Duration = Duration::from_millis(400);

/// A connection: requests of all threads share it, and one that was cut is never mended.
#[derive(Clone)]
pub(super) enum Link {
    /// To one server.
    Single(MultiplexedConnection),
    /// To all servers of a cluster, whose slots it follows.
    Cluster(ClusterConnection),
}

impl Link {
    pub(super) async fn query<T: FromRedisValue>(&mut self, command: &Cmd) -> RedisResult<T> {
        match self {
            Self::Single(connection) => command.query_async(connection).await,
            Self::Cluster(connection) => command.query_async(connection).await,
        }
    }

    /// Sends all of `commands`, whose answers say nothing but that they were done.
    pub(super) async fn perform(&mut self, commands: Vec<Cmd>) -> RedisResult<()> {
        match self {
            Self::Single(connection) => {
                let mut all = pipe();
                for command in commands {
                    all.add_command(command).ignore();
                }
                all.query_async(connection).await
            }
            // Its keys lie on different servers, and a pipeline goes to one.
            Self::Cluster(connection) => {
                let mut all = JoinSet::new();
                for command in commands {
                    let mut connection = connection.clone();
                    all.spawn(async move { command.query_async::<()>(&mut connection).await });
                }
                while let Some(done) = all.join_next().await {
                    done.map_err(|_| RedisError::from((ErrorKind::Client, "a command was given up")))??;
                }
                Ok(())
            }
        }
    }

    /// Makes sure that every master of a cluster answers.
    pub(super) async fn ping(&mut self) -> RedisResult<()> {
        let Self::Cluster(connection) = self else { return Ok(()) };
        let masters = (MultipleNodeRoutingInfo::AllMasters, Some(ResponsePolicy::AllSucceeded));
        connection.route_command(cmd("PING"), RoutingInfo::MultiNode(masters)).await?.extract_error()?;
        Ok(())
    }
}

/// How to make a [`Link`].
#[derive(Clone)]
pub(super) struct Target {
    address: Address,
    /// The CA that servers' certificates have to be from; the system's if none is given.
    ca: Option<Vec<u8>>,
    /// The certificate that is shown to servers, and its key.
    identity: Option<(Vec<u8>, Vec<u8>)>,
}

impl Target {
    /// Checks that a link can be made of these, as far as that can be known without connecting.
    pub(super) fn new(
        address: Address,
        ca: Option<Vec<u8>>,
        identity: Option<(Vec<u8>, Vec<u8>)>,
    ) -> RedisResult<Self> {
        let target = Self { address, ca, identity };
        for (host, port) in &target.address.nodes {
            target.client(host, *port, target.settings())?;
        }
        Ok(target)
    }

    pub(super) fn address(&self) -> &Address {
        &self.address
    }

    pub(super) async fn connect(&self) -> RedisResult<Link> {
        match &self.address.kind {
            Kind::Single => {
                let [(host, port)] = self.address.nodes.as_slice() else {
                    return Err((ErrorKind::InvalidClientConfig, "expected one server").into());
                };
                let connection = connect(&self.client(host, *port, self.settings())?, None).await?;
                Ok(Link::Single(connection))
            }
            Kind::Sentinel(master) => self.connect_to_master(master, None).await.map(Link::Single),
            Kind::Cluster => self.connect_to_cluster().await.map(Link::Cluster),
        }
    }

    /// A connection for notices, which come by `pushes`: of a cluster to any of its servers, since all of them pass notices on.
    pub(super) async fn connect_to_any(
        &self,
        pushes: UnboundedSender<PushInfo>,
    ) -> RedisResult<MultiplexedConnection> {
        if let Kind::Sentinel(master) = &self.address.kind {
            return self.connect_to_master(master, Some(pushes)).await;
        }
        let mut failure = RedisError::from((ErrorKind::InvalidClientConfig, "expected a server"));
        for (host, port) in &self.address.nodes {
            match connect(&self.client(host, *port, self.settings())?, Some(pushes.clone())).await {
                Ok(connection) => return Ok(connection),
                Err(error) => failure = error,
            }
        }
        Err(failure)
    }

    /// Asks all sentinels at once: one that hangs or lags behind must not decide. The first server named that says itself that
    /// it is the master is it.
    async fn connect_to_master(
        &self,
        master: &str,
        pushes: Option<UnboundedSender<PushInfo>>,
    ) -> RedisResult<MultiplexedConnection> {
        let mut asked = JoinSet::new();
        for (host, port) in &self.address.nodes {
            // Most sentinels have no password, and those that have one mostly have the servers'.
            let bare = self.client(
                host,
                *port,
                RedisConnectionInfo::default().set_protocol(ProtocolVersion::RESP3),
            )?;
            let known = self.client(host, *port, self.settings().set_db(0))?;
            let mut question = cmd("SENTINEL");
            question.arg("GET-MASTER-ADDR-BY-NAME").arg(master);
            asked.spawn(async move {
                let ask = async {
                    let mut connection = match connect(&bare, None).await {
                        Err(error) if !error.is_io_error() => connect(&known, None).await?,
                        other => other?,
                    };
                    question.query_async::<Option<(String, u16)>>(&mut connection).await
                };
                tokio::time::timeout(SENTINEL, ask).await
            });
        }
        let mut found = Vec::new();
        let mut failure = RedisError::from((ErrorKind::Io, "no sentinel answers"));
        while let Some(answer) = asked.join_next().await {
            let (host, port) = match answer {
                Ok(Ok(Ok(Some(address)))) if !found.contains(&address) => address,
                Ok(Ok(Ok(Some(_)))) | Err(_) | Ok(Err(_)) => continue,
                Ok(Ok(Ok(None))) => {
                    failure =
                        (ErrorKind::MasterNameNotFoundBySentinel, "a sentinel knows no such master").into();
                    continue;
                }
                Ok(Ok(Err(error))) => {
                    failure = error;
                    continue;
                }
            };
            let client = self.client(&host, port, self.settings())?;
            found.push((host, port));
            let connection = async {
                let mut connection = connect(&client, pushes.clone()).await?;
                let role: Vec<::redis::Value> = cmd("ROLE").query_async(&mut connection).await?;
                let role = role.first().map(String::from_redis_value_ref).transpose()?;
                match role.as_deref() {
                    Some("master") => Ok(connection),
                    _ => Err((ErrorKind::Io, "the server that a sentinel names is no master").into()),
                }
            };
            match connection.await {
                Ok(connection) => return Ok(connection),
                Err(error) => failure = error,
            }
        }
        Err(failure)
    }

    async fn connect_to_cluster(&self) -> RedisResult<ClusterConnection> {
        let nodes = self.address.nodes.iter();
        let nodes: Vec<ConnectionInfo> =
            nodes.map(|(host, port)| self.info(host, *port, self.settings())).collect::<RedisResult<_>>()?;
        let mut builder = ClusterClientBuilder::new(nodes)
            .use_protocol(ProtocolVersion::RESP3)
            .connection_timeout(CONNECT)
            // Whoever waits has a deadline of its own, far shorter than any of the crate's waits, of which the shortest is
            // more than a second unless told otherwise.
            .response_timeout(CONNECT)
            .overall_response_timeout(None)
            .retries(4)
            .min_retry_wait(1)
            .max_retry_wait(5);
        if let Some(certificates) = self.certificates() {
            builder = builder.certs(certificates);
        }
        builder.build()?.get_async_connection().await
    }

    fn client(&self, host: &str, port: u16, settings: RedisConnectionInfo) -> RedisResult<Client> {
        let info = self.info(host, port, settings)?;
        match self.certificates() {
            Some(certificates) => Client::build_with_tls(info, certificates),
            None => Client::open(info),
        }
    }

    fn info(&self, host: &str, port: u16, settings: RedisConnectionInfo) -> RedisResult<ConnectionInfo> {
        let host = host.to_owned();
        let address = if self.address.is_tls {
            ConnectionAddr::TcpTls { host, port, insecure: false, tls_params: None }
        } else {
            ConnectionAddr::Tcp(host, port)
        };
        Ok(address.into_connection_info()?.set_redis_settings(settings))
    }

    fn certificates(&self) -> Option<TlsCertificates> {
        let identity = self.identity.clone();
        let client_tls =
            identity.map(|(client_cert, client_key)| ClientTlsConfig { client_cert, client_key });
        self.address.is_tls.then(|| TlsCertificates { client_tls, root_cert: self.ca.clone() })
    }

    fn settings(&self) -> RedisConnectionInfo {
        let Address { user, password, database, .. } = &self.address;
        let mut settings =
            RedisConnectionInfo::default().set_protocol(ProtocolVersion::RESP3).set_db(*database);
        if let Some(user) = user {
            settings = settings.set_username(user);
        }
        if let Some(password) = password {
            settings = settings.set_password(password.expose_secret());
        }
        settings
    }
}

async fn connect(
    client: &Client,
    pushes: Option<UnboundedSender<PushInfo>>,
) -> RedisResult<MultiplexedConnection> {
    // Whoever waits for an answer has a deadline of its own; a second timer for each would only cost.
    let mut config = AsyncConnectionConfig::new()
        .set_connection_timeout(Some(CONNECT))
        .set_response_timeout(None)
        .set_pipeline_buffer_size(1_024);
    if let Some(pushes) = pushes {
        config = config.set_push_sender(pushes);
    }
    client.get_multiplexed_async_connection_with_config(&config).await
}
