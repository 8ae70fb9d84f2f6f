//! The `Registration` service, and the life of the client that each registration makes.

use std::sync::Arc;
use std::time::Instant;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::{Request, Response, Status};

use crate::api::registration_server;
use crate::api::{self, Empty, RegisterRequest};
use crate::client::{self, Client, Connection, DialError};
use crate::manager::Registered;
use crate::name::is_extended_resource;
use crate::shared::Shared;
use crate::view::Registration;

/// The kubelet's answering end, for one life.
#[derive(Debug, Clone)]
pub(crate) struct RegistrationService {
    pub(crate) shared: Arc<Shared>,
    /// Ends the life, and with it all connections.
    pub(crate) stop: CancellationToken,
    pub(crate) tasks: TaskTracker,
}

/// Why a registration was refused.
#[derive(Debug, thiserror::Error)]
enum RefusalError {
    #[error("requested API version {0:?} is not supported by kubelet. Supported version is [{version:?}]", version = api::VERSION)]
    Version(String),
    #[error("the ResourceName {0:?} is invalid")]
    Name(String),
    #[error(transparent)]
    Dial(#[from] DialError),
    #[error("failed to get device plugin options: {0}")]
    Options(String),
    #[error("the kubelet stops")]
    Stopping,
}

#[tonic::async_trait]
impl registration_server::Registration for RegistrationService {
    async fn register(&self, request: Request<RegisterRequest>) -> Result<Response<Empty>, Status> {
        let request = request.into_inner();
        let resource = request.resource_name.clone();
        self.shared.with(|manager| manager.calls(&resource).register += 1);
        // A task of its own: the kubelet goes on connecting even if the plugin gives up on its call.
        let service = self.clone();
        let connecting = self.tasks.spawn(async move { service.connect(request).await });
        let refusal = match connecting.await {
            Ok(Ok(())) => return Ok(Response::new(Empty {})),
            Ok(Err(refusal)) => refusal.to_string(),
            Err(join) => join.to_string(),
        };
        self.shared.change(|manager| manager.history.refusals.push(format!("{resource}: {refusal}")));
        // An error of Go that isn't a status has the code Unknown.
        Err(Status::unknown(refusal))
    }
}

impl RegistrationService {
    async fn connect(&self, request: RegisterRequest) -> Result<(), RefusalError> {
        let RegisterRequest { version, endpoint, resource_name: resource, options: requested_options } =
            request;
        if version != api::VERSION {
            return Err(RefusalError::Version(version));
        }
        if !is_extended_resource(&resource) {
            return Err(RefusalError::Name(resource));
        }

        let client = self.shared.with(|manager| {
            if endpoint.contains('/') {
                manager.history.complaints.push(format!("{resource}: the endpoint {endpoint:?} is a path"));
            }
            let id = manager.next_client();
            let client = Arc::new(Client::new(id, resource.clone(), endpoint.clone()));
            let replaced = manager.clients.insert(resource.clone(), Arc::clone(&client));
            if self.shared.settings.emulate_race {
                // Nobody closes the connection of a client that isn't in the map any more; its stream goes on.
                manager.leaked.extend(replaced);
            }
            client
        });
        let connected = self.open(&client).await;
        let (connection, options) = match connected {
            Ok(connected) => connected,
            Err(refusal) => {
                client.close();
                self.shared.with(|manager| manager.deregister(&client, self.shared.settings.emulate_race));
                return Err(refusal);
            }
        };

        let plugin = connection.plugin.clone();
        let life = self.shared.with(|manager| manager.life);
        let at = Instant::now();
        let registered = Registered { client: client.id, name: endpoint.clone(), plugin, options };
        let registration = Registration { resource, endpoint, version, options, requested_options, at, life };
        self.shared.change(|manager| manager.plugin_connected(registration, registered));
        let service = self.clone();
        self.tasks.spawn(async move { service.follow(&client, connection).await });
        Ok(())
    }

    /// Dials the plugin and asks for its options, while its `Register` waits.
    ///
    /// The kubelet's limit is on the dialling alone, but its dialling ends only with the first answer of the
    /// plugin's HTTP/2: so one limit for both is what a plugin meets that has bound its socket and doesn't serve.
    async fn open(&self, client: &Client) -> Result<(Connection, api::DevicePluginOptions), RefusalError> {
        // As Go joins paths: below the folder, even if the endpoint begins with a slash.
        let socket = self.shared.settings.folder.join(client.endpoint.trim_start_matches('/'));
        let limit = self.shared.settings.dial_limit;
        let mut connection = client::dial(&socket, limit, self.stop.child_token()).await?;
        client.set_connection(connection.clone());
        self.shared.with(|manager| manager.calls(&client.resource).options += 1);
        let asked = connection.plugin.get_device_plugin_options(Empty {});
        let options = tokio::select! {
            answer = tokio::time::timeout(limit, asked) => match answer {
                Ok(Ok(options)) => options.into_inner(),
                Ok(Err(status)) => return Err(RefusalError::Options(status.to_string())),
                Err(_elapsed) => return Err(RefusalError::Options("context deadline exceeded".to_owned())),
            },
            () = self.stop.cancelled() => return Err(RefusalError::Stopping),
        };
        Ok((connection, options))
    }

    /// Reads lists until the stream ends, then disconnects — whom, is the question.
    async fn follow(&self, client: &Arc<Client>, connection: Connection) {
        let resource = &client.resource;
        tokio::select! {
            () = self.read_lists(resource, connection) => {}
            () = self.stop.cancelled() => return,
        }
        self.shared.change(|manager| {
            if self.shared.settings.emulate_race {
                // The kubelet looks for "its" client by the name of the resource. After an early second
                // registration that is the new one, and the new one is disconnected.
                if let Some(found) = manager.clients.remove(resource) {
                    found.close();
                    manager.plugin_disconnected(resource, Instant::now());
                }
            } else {
                client.close();
                manager.deregister(client, false);
                if manager.endpoint_client(resource) == Some(client.id) {
                    manager.plugin_disconnected(resource, Instant::now());
                }
            }
        });
    }

    async fn read_lists(&self, resource: &str, mut connection: Connection) {
        self.shared.with(|manager| manager.calls(resource).list_and_watch += 1);
        let Ok(stream) = connection.plugin.list_and_watch(Empty {}).await else { return };
        let mut stream = stream.into_inner();
        while let Ok(Some(message)) = stream.message().await {
            if let Some(pause) = self.shared.settings.slow_reader {
                tokio::time::sleep(pause).await;
            }
            self.shared.change_on_disk(|manager| {
                manager.list_received(resource, &message.devices, Instant::now());
            });
        }
    }
}
