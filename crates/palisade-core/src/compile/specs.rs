//! What runs: the specification of each instance.

use std::net::IpAddr;
use std::path::PathBuf;

use super::reach::{binds, is_fixed};
use super::{CompiledInstance, Compiler};
use crate::action::VolumeName;
use crate::edge;
use crate::finding::Finding;
use crate::image;
use crate::instance::{
    CgroupDriver, ContainerProgram, InstanceFile, InstanceMount, InstanceMountSource, InstanceSpec, Program,
};
use crate::names::{InstanceId, ProjectName};
use crate::observed::{EngineState, FileSeen};
use crate::stack::{
    FileSource, Mount, MountSource, Proto, ProvidedFile, Runner, RuntimeChoice, Service, Unguarded, Volume,
};

/// What is looked up for the instances of one service.
pub(super) struct Needs {
    program: Program,
    links: Vec<(String, IpAddr)>,
    files: Vec<InstanceFile>,
}

impl Compiler<'_> {
    /// Volumes become folders, so what they are called must be a name and not a path.
    pub(super) fn volume_names(&mut self) {
        for (key, volume) in &self.stack.volumes {
            let name = volume.name.as_deref().unwrap_or(key);
            let first = name.chars().next().is_some_and(|c| c.is_ascii_alphanumeric());
            let rest = name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-'));
            if !(first && rest && name.len() <= 255) {
                let message = format!("a volume can't be called `{name}`");
                let remedy = "use letters, digits, `_`, `.` and `-`, beginning with a letter or digit";
                self.findings.push(Finding::error("volume-name", key, message).remedy(remedy));
            }
        }
    }

    /// With the digest of what the host's file holds, or a finding about it.
    pub(super) fn file(&mut self, service: &Service, file: &ProvidedFile, place: &crate::place::Place) -> InstanceFile {
        let mut whole = InstanceFile { file: file.clone(), content_digest: None };
        let FileSource::Path(path) = &file.source else { return whole };
        let kind = if file.secret { "secret" } else { "config" };
        let mut wrong = |id, what: &str, remedy: &str| {
            let message = format!("the file of its {kind} `{}`, {}, {what}", file.name, path.display());
            self.findings.push(Finding::error(id, &service.name, message).remedy(remedy).at(place));
        };
        match self.surroundings.files.map(|files| files.get(path)) {
            None | Some(Some(FileSeen::NotForUs)) => {}
            Some(Some(FileSeen::Readable { digest })) => whole.content_digest = Some(digest.clone()),
            Some(Some(FileSeen::Missing)) => {
                wrong("file-missing", "doesn't exist", "make the file, or correct the path")
            }
            Some(Some(FileSeen::Unusable { why })) => {
                wrong(
                    "file-unusable",
                    &format!("can't be used: {why}"),
                    "name a file; a directory can be mounted with `volumes`",
                );
            }
            Some(None) => wrong("file-unusable", "was not looked at", "this is a fault of Palisade: please report it"),
        }
        whole
    }

    /// What the guard can't hold is not started, unless somebody has written down why it may be.
    pub(super) fn refuse_unguarded(&mut self, service: &Service) {
        for breach in service.unguarded.iter().filter(|breach| breach.value.accepted.is_none()) {
            let Unguarded { risk, could, .. } = &breach.value;
            let finding =
                Finding::error("beyond-the-guard", &service.name, format!("{could}, so the guard can't hold it"));
            let remedy = format!(
                "remove it, or accept it with a reason: `x-palisade: {{allow: [{{id: {risk}, reason: \"…\"}}]}}`"
            );
            self.findings.push(finding.remedy(remedy).at(&breach.place));
        }
    }

    pub(super) fn check_limits(&mut self, service: &Service) {
        let limits = &service.limits;
        let Some(with_swap) = limits.memory_swap_bytes else { return };
        let message = match limits.memory_bytes {
            None => "its memswap_limit needs a limit of memory: it is memory and swap together",
            Some(memory) if with_swap < memory => "its memswap_limit is below its limit of memory, which it includes",
            Some(_) => return,
        };
        let finding = Finding::error("swap-limit", &service.name, message).at(&service.place);
        self.findings.push(finding.remedy("write `mem_limit` and a memswap_limit of at least as much"));
    }

    /// What its instances run, or a finding about why that can't be.
    pub(super) fn program(&mut self, service: &Service) -> Option<Program> {
        let container = match service.run.runner() {
            Runner::Process(process) => return Some(Program::Process(process.clone())),
            Runner::Engine(container) => container,
            Runner::Nobody => {
                let (message, remedy) = match service.run.runtime {
                    RuntimeChoice::Process => (
                        "x-palisade.runtime is `process`, and nothing says how to run it as one",
                        "add x-palisade.process with the command to run, or take `runtime` away",
                    ),
                    RuntimeChoice::Engine => (
                        "x-palisade.runtime is `engine`, and it has no image",
                        "add `image` or `build`, or take `runtime` away",
                    ),
                    RuntimeChoice::Auto => ("nothing says what it runs", "add `image`, `build` or x-palisade.process"),
                };
                self.findings
                    .push(Finding::error("nothing-to-run", &service.name, message).remedy(remedy).at(&service.place));
                return None;
            }
        };
        let image = image::image_name(&self.stack.project, service, container);
        let mut program = ContainerProgram {
            socket: PathBuf::new(),
            cgroup_driver: CgroupDriver::Cgroupfs,
            name: String::new(),
            image_id: None,
            image,
            settings: container.clone(),
            host_mode: service.host_mode,
        };
        match self.surroundings.engine {
            EngineState::NotAsked => {}
            EngineState::Away { why, remedy } => {
                self.needs_engine(service, why, remedy);
                return None;
            }
            EngineState::There(engine) => {
                self.findings.extend(image::obstacles(self.stack, service, container, engine));
                program.socket.clone_from(&engine.socket);
                program.cgroup_driver = engine.cgroup_driver;
                program.image_id = engine.images.get(&program.image).map(|image| image.id.clone());
            }
        }
        Some(Program::Container(Box::new(program)))
    }

    /// One finding for all services that wait for the same engine.
    pub(super) fn needs_engine(&mut self, service: &Service, why: &str, remedy: &str) {
        const ID: &str = "needs-engine";
        match self.findings.iter_mut().find(|finding| finding.id == ID) {
            Some(finding) => {
                finding.subject = format!("{}, {}", finding.subject, service.name);
                finding.message = format!("their images need a container engine, and {why}");
            }
            None => {
                let message = format!("its image needs a container engine, and {why}");
                self.findings.push(Finding::error(ID, &service.name, message).remedy(remedy).at(&service.place));
            }
        }
    }

    pub(super) fn instances(&mut self, index: usize, instances: &mut Vec<CompiledInstance>) {
        let stack = self.stack;
        let service = &stack.services[index];
        let Some(mut spec) = self.template(index) else { return };
        for number in self.surroundings.numbers.of(service) {
            spec.id.number = number;
            if let Program::Container(container) = &mut spec.program {
                container.name = container_name(&stack.project, service, number);
            }
            spec.address = self.addresses[index].instance(number);
            spec.mounts = self.mounts(service, &spec.id, &spec.program);
            instances.push(CompiledInstance { fingerprint: spec.fingerprint(), spec: spec.clone() });
        }
    }

    /// What its instances need and the file doesn't say in so many words; or findings about why that can't be had.
    pub(super) fn needs(&mut self, index: usize) -> Option<Needs> {
        let service = &self.stack.services[index];
        if self.surroundings.numbers.of(service).is_empty() {
            return None;
        }
        self.refuse_unguarded(service);
        let program = self.program(service)?;
        if service.replicas > 1
            && let Some(publish) = service.publish.iter().find(|publish| publish.value.container.proto == Proto::Udp)
        {
            let message = format!(
                "it publishes port {}/udp and has {} replicas, but only TCP ports of the host can be shared",
                publish.value.host_port, service.replicas
            );
            self.findings.push(Finding::error("published-replicas", &service.name, message).at(&publish.place));
        }
        let links = self.links(index);
        let files = service.files.iter().map(|file| self.file(service, &file.value, &file.place)).collect();
        self.check_limits(service);
        Some(Needs { program, links, files })
    }

    /// What all instances of a service have in common: everything but number, address and mounts.
    pub(super) fn template(&mut self, index: usize) -> Option<InstanceSpec> {
        let Needs { program, links, files } = self.needs(index)?;
        let hosts = self.hosts(index, links);
        let service = &self.stack.services[index];
        let own = program.process().is_some_and(|process| process.own);
        Some(InstanceSpec {
            project: self.stack.project.clone(),
            id: InstanceId { service: service.name.clone(), number: 1 },
            address: self.addresses[index].instance(1),
            program,
            environment: service.environment.clone(),
            hosts,
            mounts: Vec::new(),
            limits: service.limits.clone(),
            stop_signal: service.stop_signal.clone(),
            stop_grace_ms: service.stop_grace_ms,
            restart: service.restart,
            healthcheck: service.healthcheck.clone(),
            log: service.log,
            cap_add: service.cap_add.clone(),
            cap_drop: service.cap_drop.clone(),
            read_only: service.read_only,
            files,
            settings: service.settings.clone(),
            published: binds(service).into_iter().filter(is_fixed).collect(),
            own_program: own.then(|| self.surroundings.own.map(|places| places.program.clone())).flatten(),
        })
    }

    /// What the file mounts, and what the image asks for at other places.
    pub(super) fn mounts(&self, service: &Service, id: &InstanceId, program: &Program) -> Vec<InstanceMount> {
        let written = service.mounts.iter().map(|mount| self.mount(service, id.number, &mount.value, program));
        let image = image::image_of(self.stack, service, self.surroundings.engine);
        let asked = image.into_iter().flat_map(|image| image::uncovered_volumes(service, image));
        let asked = asked.map(|target| InstanceMount {
            source: InstanceMountSource::EngineVolume {
                name: image::volume_name(&self.stack.project, id, target),
                nocopy: false,
            },
            target: target.to_owned(),
            read_only: false,
        });
        let places = self.surroundings.own.into_iter();
        let own = places.flat_map(|places| edge::mounts(&service.name, id.number, &places.edge));
        written.chain(asked).chain(own).collect()
    }

    /// A mount of one instance, with its source settled.
    pub(super) fn mount(&self, service: &Service, number: u8, mount: &Mount, program: &Program) -> InstanceMount {
        let source = match &mount.source {
            MountSource::Bind(path) => InstanceMountSource::Path(path.clone()),
            MountSource::Tmpfs { size_bytes, mode } => {
                InstanceMountSource::Tmpfs { size_bytes: *size_bytes, mode: *mode }
            }
            MountSource::Volume(_) | MountSource::Anonymous { .. } => {
                let key = mount.volume_key(&service.name, number).unwrap_or_default();
                self.volume(&key, mount.nocopy, program)
            }
        };
        InstanceMount { source, target: mount.target.clone(), read_only: mount.read_only }
    }

    pub(super) fn volume(&self, key: &str, nocopy: bool, program: &Program) -> InstanceMountSource {
        match (self.stack.volume_name(key), program) {
            (VolumeName::Engine(name), Program::Container(_)) => InstanceMountSource::EngineVolume { name, nocopy },
            // A process next to containers uses the folder that the engine keeps the volume in.
            (VolumeName::Engine(name), Program::Process(_)) => {
                let folder = self.surroundings.engine.seen().map(|engine| engine.volumes_folder.clone());
                InstanceMountSource::Path(folder.unwrap_or_default().join(name).join("_data"))
            }
            _ => {
                let unknown = Volume::default();
                let volume = self.stack.volumes.get(key).unwrap_or(&unknown);
                InstanceMountSource::Volume((self.surroundings.volume_path)(key, volume))
            }
        }
    }
}

/// What the container of an instance is called: as Compose calls it, so that people and tools find it.
fn container_name(project: &ProjectName, service: &Service, number: u8) -> String {
    let own = service.run.container.as_ref().and_then(|container| container.name.clone());
    own.unwrap_or_else(|| format!("{project}-{}-{number}", service.name))
}
