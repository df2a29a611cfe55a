//! Which processes make the ring, where they listen and what each config file says.

use std::io::{self, ErrorKind};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};

use anyhow::Context;
use toml::{Table, Value};

use super::file::{RingFile, address};
use super::options::UpOptions;
use super::pairs;

/// The processes in the order in which they start: decode, prefill, gateway.
pub struct Fleet {
    pub servers: Vec<Server>,
    /// Where clients reach the gateway.
    pub url: String,
    /// What clients call the model.
    pub model_name: String,
    /// What they must send, if anything.
    pub client_key: Option<String>,
}

/// One process: its name in the run folder, its program and its config.
pub struct Server {
    pub name: String,
    pub program: PathBuf,
    /// What stands before `--config FILE`.
    pub arguments: Vec<String>,
    pub settings: Table,
}

/// What `auto` prefers on one machine.
const BEST: &str = "ucx";

/// A drain ends before this command loses patience with it.
const DRAIN_SECONDS: i64 = 8;

impl Server {
    /// The text of the config file.
    ///
    /// # Errors
    /// Where a path is not UTF-8, which TOML cannot hold.
    pub fn config(&self, key_file: &Path) -> anyhow::Result<String> {
        let mut settings = self.settings.clone();
        settings.insert("key_file".into(), path(key_file)?);
        toml::to_string(&settings).with_context(|| format!("write the config of {}", self.name))
    }

    fn says(&self, key: &str) -> &str {
        self.settings.get(key).and_then(Value::as_str).unwrap_or_default()
    }
}

impl Fleet {
    /// The header of that name, for every question to the gateway.
    pub fn authorization(&self) -> String {
        format!("Bearer {}", self.client_key.as_deref().unwrap_or_default())
    }

    /// # Errors
    /// Where the gateway's address cannot be had, the key of clients cannot be read, or the folder
    /// of this program cannot be found.
    pub fn plan(options: &UpOptions, ring: &RingFile, model: &Path) -> anyhow::Result<Self> {
        let model = path(&model.canonicalize().context("find the model")?)?;
        let own = std::env::current_exe().context("find this program")?;
        let mut ports = Ports::default();
        let wanted = ring.listen()?;
        let listen = ports.take(wanted).map_err(|error| {
            let what = match error.kind() {
                ErrorKind::AddrInUse => {
                    format!("{wanted} is taken: give --port N, or --port 0 for any")
                }
                _ => format!("[gateway]: `listen` is {wanted}; want an address that can be bound"),
            };
            anyhow::Error::from(error).context(what)
        })?;
        let servers = if options.one_process {
            let mut settings = table([
                ("listen", listen.to_string().into()),
                ("model", model),
                ("served_model_name", ring.served_model_name().into()),
            ]);
            settings.insert("gateway".into(), drained(without(&ring.gateway, "listen")));
            settings.insert("server".into(), drained(ring.server.clone()));
            let arguments = vec!["ring".to_owned()];
            vec![Server { name: "ring".into(), program: own, arguments, settings }]
        } else {
            three_roles(ring, &model, &own, (listen, &mut ports))?
        };
        let url = format!("http://{}", reached(listen));
        let model_name = ring.served_model_name().to_owned();
        Ok(Self { servers, url, model_name, client_key: ring.client_key()? })
    }

    /// How pages travel, a line for each pair of servers; once the ring is ready.
    pub fn pairs(&self) -> Vec<String> {
        let prefill = self.servers.iter().filter(|server| server.name.starts_with("prefill-"));
        let mut lines = Vec::new();
        for server in prefill {
            let is_auto = matches!(server.says("transport"), "" | "auto");
            for pair in pairs::of(server.says("admin")) {
                let why = match is_auto && pair.transport != BEST {
                    true => format!(" (why not {BEST}: {}.log)", server.name),
                    false => String::new(),
                };
                lines.push(format!("{pair}{why}"));
            }
        }
        lines
    }
}

fn three_roles(
    ring: &RingFile,
    model: &Value,
    own: &Path,
    (listen, ports): (SocketAddr, &mut Ports),
) -> anyhow::Result<Vec<Server>> {
    let decode = ports.of("decode", &ring.decode)?;
    let prefill = ports.of("prefill", &ring.prefill)?;
    let (joins, all) = (addresses(&decode), addresses(&prefill));
    let of_all = |id: &str| {
        let drain = ("drain_seconds", DRAIN_SECONDS.into());
        table([("id", id.into()), ("model", model.clone()), drain])
    };
    let mut servers = Vec::new();
    let mut add = |name: &str, program: &str, settings: Table| {
        let (name, program) = (name.to_owned(), own.with_file_name(program));
        servers.push(Server { name, program, arguments: Vec::new(), settings });
    };
    let roles = [("decode", &ring.decode, &decode), ("prefill", &ring.prefill, &prefill)];
    for (role, said, places) in roles {
        for (index, (said, place)) in said.iter().zip(places).enumerate() {
            let id = format!("{role}-{index}");
            let mut settings = of_all(&id);
            settings.extend(ring.server.clone());
            settings.extend(said.clone());
            settings.extend(table([
                ("listen", place.listen.to_string().into()),
                ("admin", place.admin.to_string().into()),
            ]));
            if role == "prefill" {
                settings.insert("decode".into(), joins.clone());
            }
            add(&id, &format!("tandem-{role}"), settings);
        }
    }
    let mut settings = of_all("gateway");
    settings.extend(ring.gateway.clone());
    settings.extend(table([
        ("listen", listen.to_string().into()),
        ("prefill", all),
        ("decode", joins),
    ]));
    add("gateway", "tandem-gateway", settings);
    Ok(servers)
}

fn table<const N: usize>(pairs: [(&str, Value); N]) -> Table {
    pairs.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
}

fn without(table: &Table, key: &str) -> Table {
    let mut table = table.clone();
    table.remove(key);
    table
}

fn drained(mut settings: Table) -> Value {
    settings.insert("drain_seconds".into(), DRAIN_SECONDS.into());
    settings.into()
}

fn path(path: &Path) -> anyhow::Result<Value> {
    let text = path.to_str().with_context(|| format!("{} is not UTF-8", path.display()))?;
    Ok(text.into())
}

/// Where this machine reaches what listens there.
fn reached(listen: SocketAddr) -> SocketAddr {
    match listen.ip().is_unspecified() {
        true => SocketAddr::from((Ipv4Addr::LOCALHOST, listen.port())),
        false => listen,
    }
}

/// Where a server is.
struct Place {
    listen: SocketAddr,
    /// `/health` and `/metrics`.
    admin: SocketAddr,
}

fn addresses(places: &[Place]) -> Value {
    places.iter().map(|place| reached(place.listen).to_string()).collect::<Vec<_>>().into()
}

/// Free ports of the loopback address. All are held until the last is found, so that no two are
/// the same; between the release and the server's own bind another program may take one, and the
/// server then says so in its log.
#[derive(Default)]
struct Ports {
    held: Vec<TcpListener>,
}

impl Ports {
    fn take(&mut self, wanted: SocketAddr) -> io::Result<SocketAddr> {
        let listener = TcpListener::bind(wanted)?;
        let address = listener.local_addr()?;
        self.held.push(listener);
        Ok(address)
    }

    /// The places of these servers: those that they say, and free ones.
    fn of(&mut self, role: &str, servers: &[Table]) -> anyhow::Result<Vec<Place>> {
        let free = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let mut place = |server: &Table, key: &str| {
            let wanted = address(server, key).with_context(|| format!("[[{role}]]"))?;
            let wanted = wanted.unwrap_or(free);
            self.take(wanted)
                .with_context(|| format!("[[{role}]]: `{key}`: {wanted} cannot be bound"))
        };
        let places = servers.iter().map(|server| {
            Ok(Place { listen: place(server, "listen")?, admin: place(server, "admin")? })
        });
        places.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::up::options::tests::parse;

    fn plan(text: &str, flags: &[&str]) -> anyhow::Result<Fleet> {
        let options = parse(flags).unwrap();
        let ring = RingFile::parse(text)?.under(&options)?;
        Fleet::plan(&options, &ring, Path::new("."))
    }

    #[test]
    fn decode_starts_first_and_everyone_knows_everyone() {
        let flags = ["--port", "0", "--prefill", "2", "--decode", "3", "--transport", "ucx"];
        let fleet = plan("", &[&flags[..], &["--weights", "q8_0"]].concat()).unwrap();
        let names: Vec<&str> = fleet.servers.iter().map(|server| server.name.as_str()).collect();
        assert_eq!(names[..3], ["decode-0", "decode-1", "decode-2"]);
        assert_eq!(names[3..], ["prefill-0", "prefill-1", "gateway"]);
        let config = |index: usize| -> Table {
            toml::from_str(&fleet.servers[index].config(Path::new("/k")).unwrap()).unwrap()
        };
        let list = |index: usize, key: &str| config(index)[key].as_array().unwrap().clone();
        let decodes: Vec<_> = (0..3).map(|index| config(index)["listen"].clone()).collect();
        assert_eq!(list(5, "decode"), decodes);
        assert_eq!(list(3, "decode"), decodes);
        assert_eq!(list(5, "prefill").len(), 2);
        assert_eq!(config(0)["transport"].as_str(), Some("ucx"));
        assert_eq!(config(3)["weights"].as_str(), Some("q8_0"));
        assert_eq!(config(5)["key_file"].as_str(), Some("/k"));
    }

    #[test]
    fn a_table_of_the_file_goes_to_its_process_alone() {
        let text = "[gateway]\nlisten = \"0.0.0.0:0\"\nmax_queued = 7\n[server]\npage_size = 8\n\
                    [[prefill]]\nchunked_prefill_size = 64\n[[decode]]\npage_size = 32\n\
                    [[decode]]\nadmin = \"127.0.0.2:0\"\n";
        let fleet = plan(text, &[]).unwrap();
        let [first, second, prefill, gateway] = &*fleet.servers else { panic!("four processes") };
        let number = |server: &Server, key| server.settings.get(key).and_then(Value::as_integer);
        assert_eq!((number(first, "page_size"), number(second, "page_size")), (Some(32), Some(8)));
        assert_eq!(number(prefill, "chunked_prefill_size"), Some(64));
        assert_eq!(number(first, "chunked_prefill_size"), None);
        assert_eq!((number(gateway, "max_queued"), number(gateway, "page_size")), (Some(7), None));
        assert!(second.says("admin").starts_with("127.0.0.2:"), "{}", second.says("admin"));
        assert!(fleet.url.starts_with("http://127.0.0.1:"), "{}", fleet.url);
    }

    /// The files are written here and read there: a key that only one side knows is found here.
    #[test]
    fn the_servers_read_what_is_written_for_them() {
        for server in plan("", &["--port", "0"]).unwrap().servers {
            let text = server.config(Path::new("/k")).unwrap();
            match &*server.name {
                "gateway" => drop(gateway::config::Settings::from_toml_str(&text).unwrap()),
                _ => drop(toml::from_str::<role::settings::Settings>(&text).unwrap()),
            }
        }
    }

    #[test]
    fn one_process_is_one_process() {
        let text = "[gateway]\nmax_queued = 7\n[server]\npage_size = 8\n";
        let fleet = plan(text, &["--one-process", "--port", "0"]).unwrap();
        assert_eq!(fleet.servers.len(), 1);
        assert_eq!(fleet.servers[0].arguments, ["ring"]);
        let text = fleet.servers[0].config(Path::new("/k")).unwrap();
        let config: Table = toml::from_str(&text).unwrap();
        let number = |table: &str, key: &str| config[table].get(key).and_then(Value::as_integer);
        assert_eq!(
            (number("gateway", "max_queued"), number("server", "page_size")),
            (Some(7), Some(8))
        );
        for table in ["gateway", "server"] {
            assert_eq!(number(table, "drain_seconds"), Some(DRAIN_SECONDS), "{text}");
        }
    }

    #[test]
    fn a_taken_port_is_refused_with_a_cure() {
        let holder = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = holder.local_addr().unwrap().port().to_string();
        let error = plan("", &["--port", &port]).err().unwrap();
        assert!(format!("{error:#}").contains("--port 0"), "{error:#}");
    }

    #[test]
    fn an_address_that_is_not_this_machines_is_not_called_taken() {
        // Of the block that documentation has.
        let error = plan("[gateway]\nlisten = \"192.0.2.1:80\"", &[]).err().unwrap();
        let error = format!("{error:#}");
        assert!(error.contains("[gateway]: `listen` is 192.0.2.1:80"), "{error}");
        assert!(error.contains("assign") && !error.contains("taken"), "{error}");
    }

    #[test]
    fn a_key_that_cannot_be_read_is_named() {
        let error = plan("[gateway]\napi_key_file = \"/no/key\"", &["--port", "0"]).err().unwrap();
        let error = format!("{error:#}");
        assert!(error.contains("[gateway]: `api_key_file`: /no/key"), "{error}");
    }
}
