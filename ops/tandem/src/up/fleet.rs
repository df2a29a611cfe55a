//! Which processes make the ring, where they listen and what each config file says.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde::Serialize;

use super::options::{Dtype, Transport, UpOptions, Weights};
use super::pairs;

/// The processes in the order in which they start: decode, prefill, gateway.
pub struct Fleet {
    pub servers: Vec<Server>,
    /// Where clients reach the gateway.
    pub url: String,
    /// What clients call the model.
    pub model_name: String,
    transport: Transport,
}

/// One process: its name in the run folder, its program and its config.
pub struct Server {
    pub name: String,
    pub program: PathBuf,
    /// What stands before `--config FILE`.
    pub arguments: Vec<String>,
    pub role: Role,
}

/// The config file of a role, field by field as that server reads it.
#[derive(Serialize)]
#[serde(untagged)]
pub enum Role {
    Gateway(GatewayFile),
    Server(ServerFile),
    OneProcess(OneProcessFile),
}

#[derive(Serialize)]
pub struct GatewayFile {
    id: String,
    listen: SocketAddr,
    model: PathBuf,
    served_model_name: String,
    prefill: Vec<SocketAddr>,
    decode: Vec<SocketAddr>,
    drain_seconds: u64,
}

#[derive(Serialize)]
pub struct ServerFile {
    id: String,
    listen: SocketAddr,
    /// `/health` and `/metrics`.
    admin: SocketAddr,
    model: PathBuf,
    dtype: Dtype,
    weights: Weights,
    transport: Transport,
    /// The decode servers that a prefill server writes to.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    decode: Vec<SocketAddr>,
    drain_seconds: u64,
}

#[derive(Serialize)]
pub struct OneProcessFile {
    listen: SocketAddr,
    model: PathBuf,
    served_model_name: String,
    dtype: Dtype,
    weights: Weights,
}

/// What `auto` prefers on one machine.
const BEST: &str = "ucx";

/// A drain ends before this command loses patience with it.
const DRAIN_SECONDS: u64 = 8;

/// A role's fields and the one that every role has.
#[derive(Serialize)]
struct ConfigFile<'a> {
    #[serde(flatten)]
    role: &'a Role,
    key_file: &'a Path,
}

impl Server {
    /// The text of the config file.
    ///
    /// # Errors
    /// Where a path is not UTF-8, which TOML cannot hold.
    pub fn config(&self, key_file: &Path) -> anyhow::Result<String> {
        let file = ConfigFile { role: &self.role, key_file };
        toml::to_string(&file).with_context(|| format!("write the config of {}", self.name))
    }
}

impl Fleet {
    /// # Errors
    /// Where the gateway's port is taken, or this program's folder cannot be found.
    pub fn plan(options: &UpOptions, model: &Path) -> anyhow::Result<Self> {
        let model = model.canonicalize().context("find the model")?;
        let own = std::env::current_exe().context("find this program")?;
        let mut ports = Ports::default();
        let listen = ports.take(options.port).with_context(|| {
            format!("port {} is taken: give --port N, or --port 0 for any", options.port)
        })?;
        let servers = if options.one_process {
            let served_model_name = options.served_model_name();
            let (dtype, weights) = (options.dtype, options.weights);
            let file = OneProcessFile { listen, model, served_model_name, dtype, weights };
            let arguments = vec!["ring".to_owned()];
            vec![Server { name: "ring".into(), program: own, arguments, role: file.into() }]
        } else {
            three_roles(options, &model, &own, (listen, &mut ports))?
        };
        let url = format!("http://{listen}");
        let model_name = options.served_model_name();
        Ok(Self { servers, url, model_name, transport: options.transport })
    }

    /// How pages travel, a line for each pair of servers; once the ring is ready.
    pub fn pairs(&self) -> Vec<String> {
        let prefill = self.servers.iter().filter_map(|server| match &server.role {
            Role::Server(file) if !file.decode.is_empty() => Some((&server.name, file.admin)),
            _ => None,
        });
        let mut lines = Vec::new();
        for (name, admin) in prefill {
            for pair in pairs::of(&admin.to_string()) {
                let chosen = self.transport == Transport::Auto && pair.transport != BEST;
                let why =
                    if chosen { format!(" (why not {BEST}: {name}.log)") } else { String::new() };
                lines.push(format!("{pair}{why}"));
            }
        }
        lines
    }
}

fn three_roles(
    options: &UpOptions,
    model: &Path,
    own: &Path,
    (listen, ports): (SocketAddr, &mut Ports),
) -> anyhow::Result<Vec<Server>> {
    let prefill = ports.take_any(options.prefill)?;
    let decode = ports.take_any(options.decode)?;
    let mut servers = Vec::new();
    let mut add = |name: String, program: &str, role: Role| {
        let program = own.with_file_name(program);
        servers.push(Server { name, program, arguments: Vec::new(), role });
    };
    let roles = [("decode", &decode, Vec::new()), ("prefill", &prefill, decode.clone())];
    for (role, listens, peers) in roles {
        for (index, listen) in listens.iter().enumerate() {
            let file = ServerFile {
                id: format!("{role}-{index}"),
                listen: *listen,
                admin: ports.take(0).context("find a free port")?,
                model: model.to_owned(),
                dtype: options.dtype,
                weights: options.weights,
                transport: options.transport,
                decode: peers.clone(),
                drain_seconds: DRAIN_SECONDS,
            };
            add(file.id.clone(), &format!("tandem-{role}"), Role::Server(file));
        }
    }
    let file = GatewayFile {
        id: "gateway".to_owned(),
        listen,
        model: model.to_owned(),
        served_model_name: options.served_model_name(),
        prefill,
        decode,
        drain_seconds: DRAIN_SECONDS,
    };
    add(file.id.clone(), "tandem-gateway", Role::Gateway(file));
    Ok(servers)
}

impl From<OneProcessFile> for Role {
    fn from(file: OneProcessFile) -> Self {
        Self::OneProcess(file)
    }
}

/// Free ports of the loopback address. All are held until the last is found, so that no two are
/// the same; between the release and the server's own bind another program may take one, and the
/// server then says so in its log.
#[derive(Default)]
struct Ports {
    held: Vec<TcpListener>,
}

impl Ports {
    fn take(&mut self, port: u16) -> anyhow::Result<SocketAddr> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port))?;
        let address = listener.local_addr()?;
        self.held.push(listener);
        Ok(address)
    }

    fn take_any(&mut self, count: u16) -> anyhow::Result<Vec<SocketAddr>> {
        (0..count).map(|_| self.take(0).context("find a free port")).collect()
    }
}

#[cfg(test)]
impl Role {
    /// A role whose config does not matter.
    pub fn test() -> Self {
        let listen = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let (model, served_model_name) = ("model".into(), "model".into());
        let (dtype, weights) = (Dtype::F32, Weights::Auto);
        Self::OneProcess(OneProcessFile { listen, model, served_model_name, dtype, weights })
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        up: UpOptions,
    }

    fn plan(arguments: &[&str]) -> anyhow::Result<Fleet> {
        let arguments = ["up", "--port", "0"].iter().chain(arguments);
        let options = Command::try_parse_from(arguments).unwrap().up;
        Fleet::plan(&options, Path::new("."))
    }

    #[test]
    fn decode_starts_first_and_everyone_knows_everyone() {
        let servers = ["--prefill", "2", "--decode", "3", "--transport", "ucx"];
        let fleet = plan(&[&servers[..], &["--weights", "q8_0"]].concat()).unwrap();
        let names: Vec<&str> = fleet.servers.iter().map(|server| server.name.as_str()).collect();
        assert_eq!(names[..3], ["decode-0", "decode-1", "decode-2"]);
        assert_eq!(names[3..], ["prefill-0", "prefill-1", "gateway"]);
        let config = |index: usize| -> toml::Table {
            toml::from_str(&fleet.servers[index].config(Path::new("/k")).unwrap()).unwrap()
        };
        let list = |index: usize, key: &str| config(index)[key].as_array().unwrap().clone();
        let decodes: Vec<_> = (0..3).map(|index| config(index)["listen"].clone()).collect();
        assert_eq!(list(5, "decode"), decodes);
        assert_eq!(list(3, "decode"), decodes);
        assert_eq!(list(5, "prefill").len(), 2);
        assert_eq!(config(0)["transport"].as_str(), Some("ucx"));
        assert_eq!(config(0)["dtype"].as_str(), Some("bf16"));
        assert_eq!(config(3)["weights"].as_str(), Some("q8_0"));
        assert_eq!(config(5)["key_file"].as_str(), Some("/k"));
    }

    /// The files are written here and read there: a key that only one side knows is found here.
    #[test]
    fn the_servers_read_what_is_written_for_them() {
        for server in plan(&[]).unwrap().servers {
            let text = server.config(Path::new("/k")).unwrap();
            match server.role {
                Role::Gateway(_) => drop(gateway::config::Settings::from_toml_str(&text).unwrap()),
                _ => drop(toml::from_str::<role::settings::Settings>(&text).unwrap()),
            }
        }
    }

    #[test]
    fn one_process_is_one_process() {
        let fleet = plan(&["--one-process"]).unwrap();
        assert_eq!(fleet.servers.len(), 1);
        assert_eq!(fleet.servers[0].arguments, ["ring"]);
    }

    #[test]
    fn a_taken_port_is_refused_with_a_cure() {
        let holder = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = holder.local_addr().unwrap().port().to_string();
        let options = Command::try_parse_from(["up", "--port", &port]).unwrap().up;
        let error = Fleet::plan(&options, Path::new(".")).err().unwrap();
        assert!(format!("{error:#}").contains("--port 0"), "{error:#}");
    }
}
