//! What is deployed, as far as it can be read without an engine or a cluster: images, the local stack, manifests for Kubernetes.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use scoregate::config::{Settings, Sources};
use serde_json::{Value, json};

use crate::support::{python, scratch, target, trainer_binary};

/// The oldest and the newest Kubernetes that the manifests are for.
const KUBERNETES: [&str; 2] = ["1.30", "1.37"];
/// What gateways that are asked every other second whether they are well leave out of their logs.
const QUIET: &str = "info,scoregate::access::routine=off";

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A program that `cargo xtask test` fetches.
fn tool(name: &str) -> Command {
    let program = target().join("tools/bin").join(name);
    assert!(program.exists(), "{} is missing: run `cargo xtask test`, which fetches it", program.display());
    let mut command = Command::new(program);
    command.current_dir(root());
    command
}

/// What a command prints, if it succeeds; else its words.
fn run(command: &mut Command, input: &str) -> Result<String, String> {
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // One that does not read it is judged by its end.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    let output = child.wait_with_output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    if output.status.success() {
        Ok(text(output.stdout))
    } else {
        Err(text(output.stdout) + &text(output.stderr))
    }
}

#[test]
fn every_target_of_the_dockerfile_is_as_hadolint_wants_it() {
    // Debian keeps the newest patch of a package only: one that is pinned is gone some day.
    let hadolint = |input: &str| run(tool("hadolint").args(["--ignore", "DL3008", "-"]), input);
    let dockerfile = fs::read_to_string(root().join("Dockerfile")).unwrap();
    assert_eq!(hadolint(&dockerfile), Ok(String::new()));
    assert!(hadolint(&dockerfile.replace("bookworm-slim AS", "latest AS")).unwrap_err().contains("DL3007"));

    let targets: Vec<&str> = dockerfile
        .lines()
        .filter(|line| line.starts_with("FROM "))
        .filter_map(|line| line.split(" AS ").nth(1))
        .collect();
    for expected in ["gateway", "trainer", "gpu"] {
        assert!(targets.contains(&expected), "{targets:?}");
    }
    assert_eq!(dockerfile.lines().rfind(|line| !line.is_empty()), Some("FROM gateway"), "the default");
    let version = format!("org.opencontainers.image.version=\"{}\"", env!("CARGO_PKG_VERSION"));
    assert_eq!(
        dockerfile.matches(&version).count(),
        dockerfile.matches("image.version=").count(),
        "{version}"
    );
}

/// The stack as Compose understands it, all profiles included.
fn stack() -> Value {
    let mut compose = tool("docker-compose");
    // As it is without anybody's own settings.
    compose.env_clear().args(["--env-file", "/dev/null", "--profile", "*", "config", "--format", "json"]);
    serde_json::from_str(&run(&mut compose, "").unwrap()).unwrap()
}

#[test]
fn the_stack_is_shut_in() {
    let stack = stack();
    let services = stack["services"].as_object().unwrap();
    let of = |profile: Option<&str>| -> BTreeSet<&str> {
        let has =
            |service: &Value| service["profiles"].as_array().and_then(|names| names[0].as_str()) == profile;
        services.iter().filter(|(_, service)| has(service)).map(|(name, _)| name.as_str()).collect()
    };
    assert_eq!(of(None), BTreeSet::from(["gateway", "issuer", "redis", "trainer"]));
    assert_eq!(of(Some("scale")), BTreeSet::from(["gateway-2", "nginx"]));
    assert_eq!(of(Some("observability")), BTreeSet::from(["collector", "grafana", "prometheus"]));
    for (name, service) in services {
        for port in service["ports"].as_array().into_iter().flatten() {
            assert_eq!(port["host_ip"], "127.0.0.1", "{name} is open to others");
        }
        assert_eq!(service["read_only"], true, "{name}");
        assert_eq!(service["cap_drop"], json!(["ALL"]), "{name}");
        assert_eq!(service["security_opt"], json!(["no-new-privileges:true"]), "{name}");
        let command = service["command"].as_array();
        assert!(command.is_some_and(|words| !words.is_empty()), "{name} does not say what it runs");
        let restart = if name == "trainer" { "no" } else { "unless-stopped" };
        assert_eq!(service["restart"], restart, "{name}");
        for limit in ["mem_limit", "cpus", "pids_limit"] {
            assert!(!service[limit].is_null(), "{name} has no {limit}");
        }
        assert!(name == "trainer" || service["healthcheck"]["test"].is_array(), "{name}");
        // docker-compose 1.29 asks a registry for an image that one service builds and another one names.
        if service["image"] == "scoregate:local" {
            assert_eq!(service["build"], services["gateway"]["build"], "{name}");
        }
    }
    assert_eq!(services["gateway"]["build"]["target"], "gateway");
    assert_eq!(stack["networks"]["back"]["internal"], true);
    assert_eq!(services["redis"]["networks"], json!({"back": null}), "nobody but gateways reaches Redis");
}

#[test]
fn what_the_stack_mounts_is_there_and_what_is_secret_is_not() {
    let stack = stack();
    let services = stack["services"].as_object().unwrap();
    let mounts = services.values().flat_map(|service| service["volumes"].as_array().into_iter().flatten());
    let secrets = stack["secrets"].as_object().unwrap().values().map(|secret| &secret["file"]);
    let binds = mounts.filter(|mount| mount["type"] == "bind").map(|mount| &mount["source"]);
    let (mut made, mut kept) = (0, 0);
    for source in binds.chain(secrets) {
        let source = PathBuf::from(source.as_str().unwrap());
        if source.starts_with(root().join("secrets")) {
            made += 1;
        } else {
            assert!(source.exists(), "{} is mounted and not there", source.display());
            kept += 1;
        }
    }
    assert!(made >= 5 && kept >= 8, "{made} {kept}");
    let ignored = fs::read_to_string(root().join(".gitignore")).unwrap();
    for line in ["/secrets/*", "/secrets/issuer/*", "/.env"] {
        assert!(ignored.lines().any(|ignored| ignored == line), "what is secret would be committed: {line}");
    }
    // Else the engine makes it, as root, where the stack comes up before the secrets are there.
    assert!(root().join("secrets/issuer/.gitkeep").exists());
}

/// What an nginx directive of the stack says.
fn nginx(directive: &str) -> String {
    let file = fs::read_to_string(root().join("deploy/compose/nginx.conf")).unwrap();
    let mut lines = file.lines().filter_map(|line| line.trim().strip_prefix(directive)?.strip_prefix(' '));
    let value = lines.next().unwrap_or_else(|| panic!("nginx.conf has no {directive}"));
    value.trim_end_matches(';').to_owned()
}

#[test]
fn nginx_holds_bodies_on_a_disk_and_waits_longer_than_a_gateway() {
    let stack = stack();
    let service = &stack["services"]["nginx"];
    let volumes = service["volumes"].as_array().unwrap();
    let bodies = volumes.iter().find(|mount| mount["type"] == "volume").unwrap();
    let path = nginx("client_body_temp_path");
    assert!(
        path.starts_with(&format!("{}/", bodies["target"].as_str().unwrap())),
        "{path} is not on {bodies}"
    );
    let server = Settings::load(Sources::default()).unwrap().server;
    assert_eq!(nginx("client_max_body_size"), format!("{}m", server.max_body_bytes >> 20));
    let seconds = |directive: &str| nginx(directive).trim_end_matches('s').parse::<u64>().unwrap();
    let all = seconds("proxy_next_upstream_timeout");
    for one in ["proxy_read_timeout", "proxy_send_timeout"] {
        let each = seconds(one);
        assert!(server.answer_timeout.as_secs() < each && each < all, "{one} {each} s, {all} s for all");
    }
    assert_eq!(seconds("client_body_timeout"), server.body_timeout.as_secs());
}

#[test]
fn prometheus_takes_the_rules_of_the_stack_and_says_when_a_gateway_is_gone() {
    // As the container has them, all beside each other.
    let directory = tempfile::tempdir_in(scratch()).unwrap();
    for file in ["compose/prometheus.yml", "compose/alerts.yml", "prometheus/rules.yml"] {
        let from = root().join("deploy").join(file);
        fs::copy(&from, directory.path().join(from.file_name().unwrap())).unwrap();
    }
    let promtool = |arguments: &[&str]| {
        let mut promtool = Command::new("promtool");
        run(promtool.current_dir(directory.path()).args(arguments), "").unwrap()
    };
    let told = promtool(&["check", "config", "prometheus.yml"]);
    assert!(told.contains("2 rule files found"), "{told}");
    promtool(&["test", "rules", root().join("tests/data/stack_alerts.yml").to_str().unwrap()]);
}

#[test]
fn the_trainer_leaves_out_what_it_cannot_fit() {
    let directory = tempfile::tempdir_in(scratch()).unwrap();
    let (data, models) = (directory.path().join("data"), directory.path().join("models"));
    fs::create_dir_all(&data).unwrap();
    fs::create_dir_all(&models).unwrap();
    // Beside the data, since the image's schemas are not on this machine.
    for (from, name) in [
        ("schemas/churn.json", "churn.json"),
        ("schemas/saas_churn.json", "saas_churn.json"),
        ("tests/data/saas_churn.csv", "churn.csv"),
        ("tests/data/saas_churn.csv", "orders.csv"),
    ] {
        fs::copy(root().join(from), data.join(name)).unwrap();
    }
    let path = format!("{}:/usr/local/bin:/usr/bin:/bin", trainer_binary().parent().unwrap().display());
    let train = || {
        let mut train = Command::new("sh");
        train.args([&root().join("deploy/image/train"), &data]);
        let output = train.env("PATH", &path).env("SCOREGATE_MODELS_DIR", &models).output().unwrap();
        (output.status.success(), String::from_utf8(output.stderr).unwrap())
    };
    let published = || -> Vec<String> {
        let models = fs::read_dir(&models).unwrap().map(|entry| entry.unwrap().file_name());
        models.map(|name| name.into_string().unwrap()).filter(|name| !name.starts_with('.')).collect()
    };
    let left_out =
        |told: &str, name: &str| told.contains(&format!("LEFT OUT: {}", data.join(name).display()));

    // One has the columns of another model, the other one no schema: that leaves nothing to serve.
    let (succeeded, told) = train();
    assert!(!succeeded && told.contains("there is no model"), "{told}");
    assert!(left_out(&told, "churn.csv") && left_out(&told, "orders.csv"), "{told}");
    assert_eq!(published(), Vec::<String>::new());

    // A third one can be fitted, and the stack comes up.
    fs::copy(root().join("tests/data/saas_churn.csv"), data.join("saas_churn.csv")).unwrap();
    let (succeeded, told) = train();
    assert!(succeeded, "{told}");
    assert!(left_out(&told, "churn.csv") && left_out(&told, "orders.csv"), "{told}");
    assert_eq!(published(), ["saas_churn"]);
    let (succeeded, told) = train();
    assert!(succeeded && told.contains("saas_churn is there already"), "{told}");

    // A link that leads nowhere is somebody's own data as well: nothing is simulated in their place.
    fs::remove_file(data.join("churn.csv")).unwrap();
    std::os::unix::fs::symlink(directory.path().join("elsewhere.csv"), data.join("churn.csv")).unwrap();
    let (succeeded, told) = train();
    assert!(succeeded && left_out(&told, "churn.csv"), "{told}");
    assert_eq!(published(), ["saas_churn"]);

    // A model whose name begins as another one's does is another model.
    fs::rename(data.join("saas_churn.csv"), data.join("saas_churn two.csv")).unwrap();
    let (succeeded, told) = train();
    assert!(succeeded && left_out(&told, "saas_churn two.csv"), "{told}");
}

/// The settings in a file of the repository.
fn settings(file: &str, environment: &[(&str, &str)]) -> Settings {
    let environment = environment.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
    let file = fs::read_to_string(root().join(file)).unwrap();
    Settings::load(Sources { environment, file: Some(file), ..Sources::default() }).unwrap()
}

#[test]
fn the_gateway_takes_the_settings_of_the_stack() {
    let stack = stack();
    let services = &stack["services"];
    let settings_of = |service: &str| {
        let environment = services[service]["environment"].as_object().unwrap();
        let environment: Vec<(&str, &str)> =
            environment.iter().filter_map(|(name, value)| Some((name.as_str(), value.as_str()?))).collect();
        let file = if service == "issuer" { "/dev/null" } else { "deploy/compose/gateway/scoregate.toml" };
        settings(file, &environment)
    };
    let gateway = settings_of("gateway");
    assert!(gateway.redis.is_some() && gateway.cache.key_file.is_some());
    assert_eq!(gateway.plan.keys().collect::<Vec<_>>(), ["trial"]);
    let issuer = &services["issuer"]["environment"];
    assert_eq!(json!(gateway.auth.issuers[0].issuer), issuer["SCOREGATE_OAUTH_ISSUER"]);
    assert_eq!(json!(gateway.auth.issuers[0].audience), json!([issuer["SCOREGATE_OAUTH_AUDIENCE"]]));
    assert_eq!(gateway.public_url(), "http://127.0.0.1:8080");
    for service in ["gateway", "issuer"] {
        assert_eq!(settings_of(service).log.filter, QUIET, "{service}");
    }
    // Whichever of them answers says the same of itself.
    assert_eq!(services["gateway-2"]["environment"], services["gateway"]["environment"]);
    for service in ["gateway", "gateway-2", "issuer"] {
        let server = settings_of(service).server;
        let drain = (server.drain_delay + server.drain_timeout).as_secs();
        let grace = services[service]["stop_grace_period"].as_str().unwrap();
        let seconds: u64 = grace.trim_end_matches('s').parse().unwrap();
        assert!(drain < seconds, "{service} drains for {drain} s and is killed after {grace}");
    }
}

/// Manifests as Kubernetes' schemas take them.
fn checked(manifests: &str) -> Result<Vec<Value>, String> {
    let mut check = Command::new(python());
    check.args(["-B", concat!(env!("CARGO_MANIFEST_DIR"), "/tests/python/manifests.py")]).args(KUBERNETES);
    run(&mut check, manifests).map(|json| serde_json::from_str(&json).unwrap())
}

/// What kustomize makes of a directory.
fn kustomized(directory: &str) -> String {
    run(tool("kubectl").args(["kustomize", directory]), "").unwrap()
}

/// What a namespace that is `restricted` asks of a pod, and a root file system that cannot be written to.
fn is_shut_in(pod: &Value) -> bool {
    let (all, container) = (&pod["securityContext"], &pod["containers"][0]["securityContext"]);
    all["runAsNonRoot"] == true
        && all["runAsUser"] == 65532
        && all["fsGroup"] == 65532
        && all["seccompProfile"]["type"] == "RuntimeDefault"
        && container["allowPrivilegeEscalation"] == false
        && container["capabilities"] == json!({"drop": ["ALL"]})
        && container["readOnlyRootFilesystem"] == true
}

#[test]
fn kubernetes_takes_the_job_that_trains() {
    let documents = checked(&kustomized("deploy/kubernetes/train")).unwrap();
    let of = |kind: &str| documents.iter().find(|document| document["kind"] == kind).unwrap();
    let pod = &of("Job")["spec"]["template"];
    assert!(is_shut_in(&pod["spec"]), "{pod}");
    let image = concat!("registry.example.com/scoregate-trainer:", env!("CARGO_PKG_VERSION"));
    assert_eq!(pod["spec"]["containers"][0]["image"], image);
    let policy = &of("NetworkPolicy")["spec"];
    assert_eq!(policy["podSelector"]["matchLabels"], pod["metadata"]["labels"]);
    assert_eq!(
        (&policy["ingress"], &policy["egress"]),
        (&Value::Null, &Value::Null),
        "it may talk to nobody"
    );
    // Where the gateway looks, by the same claim and as the same user.
    let base = checked(&kustomized("deploy/kubernetes")).unwrap();
    let gateway = base.iter().find(|document| document["kind"] == "Deployment").unwrap();
    let gateway = &gateway["spec"]["template"]["spec"];
    let named = |pod: &Value, of: &str, name: &str| -> Value {
        let found = pod[of].as_array().unwrap().iter().find(|each| each["name"] == name);
        found.unwrap().clone()
    };
    for pointer in ["volumes", "volumeMounts"] {
        let [job, gateway] = [&pod["spec"], gateway].map(|pod| match pointer {
            "volumes" => named(pod, pointer, "models"),
            _ => named(&pod["containers"][0], pointer, "models"),
        });
        assert_eq!(job, gateway, "{pointer}");
    }
    assert_eq!(pod["spec"]["serviceAccountName"], gateway["serviceAccountName"]);
}

#[test]
fn kubernetes_takes_the_manifests() {
    let manifests = kustomized("deploy/kubernetes");
    let documents = checked(&manifests).unwrap();
    let wrong = manifests.replacen("terminationGracePeriodSeconds", "terminationGraceSeconds", 1);
    let refusal = checked(&wrong).unwrap_err();
    assert!(refusal.contains("Deployment scoregate, Kubernetes 1.30"), "{refusal}");

    let of = |kind: &str| -> &Value {
        let found: Vec<_> = documents.iter().filter(|document| document["kind"] == kind).collect();
        assert_eq!(found.len(), 1, "{kind}");
        found[0]
    };
    let selector = json!({"app.kubernetes.io/name": "scoregate"});
    let deployment = of("Deployment");
    let pod = &deployment["spec"]["template"];
    assert_eq!(pod["metadata"]["labels"], selector);
    for (found, kind) in [
        (&deployment["spec"]["selector"]["matchLabels"], "Deployment"),
        (&of("Service")["spec"]["selector"], "Service"),
        (&of("PodDisruptionBudget")["spec"]["selector"]["matchLabels"], "PodDisruptionBudget"),
        (&of("NetworkPolicy")["spec"]["podSelector"]["matchLabels"], "NetworkPolicy"),
    ] {
        assert_eq!(found, &selector, "{kind}");
    }
    let namespace =
        |label: &str, value: &str| json!([{"namespaceSelector": {"matchLabels": {label: value}}}]);
    assert_eq!(
        of("NetworkPolicy")["spec"]["ingress"],
        json!([
            {"from": namespace("scoregate.example.com/client", "true"), "ports": [{"port": "http", "protocol": "TCP"}]},
            {"from": namespace("kubernetes.io/metadata.name", "monitoring"), "ports": [{"port": "admin", "protocol": "TCP"}]},
        ])
    );
    assert_eq!(
        of("NetworkPolicy")["spec"]["egress"],
        json!([
            {"to": namespace("kubernetes.io/metadata.name", "kube-system"),
             "ports": [{"port": 53, "protocol": "UDP"}, {"port": 53, "protocol": "TCP"}]},
            {"to": [{"podSelector": {"matchLabels": {"app.kubernetes.io/name": "scoregate-redis"}}}],
             "ports": [{"port": 6379, "protocol": "TCP"}]},
            {"to": [{"ipBlock": {"cidr": "0.0.0.0/0", "except": ["169.254.0.0/16"]}}], "ports": [{"port": 443, "protocol": "TCP"}]},
        ])
    );
    // The autoscaler says how many there are; a number here would undo that with every change.
    assert_eq!(deployment["spec"]["replicas"], Value::Null);
    assert_eq!(
        of("HorizontalPodAutoscaler")["spec"]["scaleTargetRef"]["name"],
        deployment["metadata"]["name"]
    );

    let container = &pod["spec"]["containers"][0];
    assert!(is_shut_in(&pod["spec"]), "{pod}");
    assert_eq!(container["readinessProbe"]["httpGet"]["path"], "/health/ready");
    assert_eq!(container["livenessProbe"]["httpGet"]["path"], "/health/live");

    let map = of("ConfigMap");
    let volumes = pod["spec"]["volumes"].as_array().unwrap();
    assert!(
        volumes.iter().any(|volume| volume["configMap"]["name"] == map["metadata"]["name"]),
        "{volumes:?}"
    );
    let settings = settings("deploy/kubernetes/scoregate.toml", &[]);
    assert_eq!(settings.log.filter, QUIET);
    assert_eq!(
        map["data"]["scoregate.toml"],
        fs::read_to_string(root().join("deploy/kubernetes/scoregate.toml")).unwrap()
    );
    let wait = container["lifecycle"]["preStop"]["sleep"]["seconds"].as_u64().unwrap();
    let drain = (settings.server.drain_delay + settings.server.drain_timeout).as_secs();
    let grace = pod["spec"]["terminationGracePeriodSeconds"].as_u64().unwrap();
    assert!(wait + drain < grace, "{wait} s, then {drain} s, of {grace} s before it is killed");
    assert_eq!(container["image"], concat!("registry.example.com/scoregate:", env!("CARGO_PKG_VERSION")));
    // A directory, which is kept up to date in a running pod, as a single file of it is not.
    let settings_at = json!({"name": "settings", "mountPath": "/etc/scoregate", "readOnly": true});
    assert!(container["volumeMounts"].as_array().unwrap().contains(&settings_at), "{container}");
    let claims: Vec<&Value> =
        volumes.iter().map(|volume| &volume["persistentVolumeClaim"]["claimName"]).collect();
    for claim in documents.iter().filter(|document| document["kind"] == "PersistentVolumeClaim") {
        assert!(claims.contains(&&claim["metadata"]["name"]), "nobody uses {}", claim["metadata"]["name"]);
    }
}
