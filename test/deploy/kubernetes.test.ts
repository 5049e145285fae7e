import { spawnSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { BlockList, isIP } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { describe, expect, it, onTestFinished } from "vitest";
import { parseAllDocuments } from "yaml";
import { isFleetError } from "../../src/base/errors.js";
import { FleetMetrics } from "../../src/serve/report/metrics.js";
import {
  find,
  has,
  hostContainer,
  kubernetes,
  type Manifest,
  type PodSpec,
  REDIS,
  type StatefulSet,
  validate,
} from "./render.js";

interface IpBlock {
  cidr: string;
  except?: string[];
}

interface Policy {
  ingress: { from: unknown[] }[];
  egress: { to: { ipBlock?: IpBlock }[]; ports: { port: number }[] }[];
}

const policyOf = (manifests: readonly Manifest[]) => find(manifests, "NetworkPolicy").spec as unknown as Policy;

function isIn({ cidr, except = [] }: IpBlock, address: string): boolean {
  const contains = (network: string) => {
    const [base = "", bits] = network.split("/");
    const type = (ip: string) => (isIP(ip) === 6 ? "ipv6" : "ipv4");
    if (type(base) !== type(address)) return false;
    const list = new BlockList();
    list.addSubnet(base, Number(bits), type(base));
    return list.check(address, type(address));
  };
  return contains(cidr) && !except.some(contains);
}

const podOf = (manifests: readonly Manifest[]) =>
  (find(manifests, "StatefulSet") as unknown as StatefulSet).spec.template.spec;
const volumesOf = (manifests: readonly Manifest[]) => podOf(manifests).volumes;
const kinds = (manifests: { kind: string }[]) => manifests.map(({ kind }) => kind);

function refusal(render: () => unknown): { exit: number; message: string } {
  try {
    render();
  } catch (error) {
    if (isFleetError(error)) return { exit: error.exit, message: error.message };
    throw error;
  }
  throw new Error("nothing was refused");
}

describe("rendered manifests", () => {
  it("deploy kubernetes with the file store renders one host", () => {
    const { manifests } = kubernetes({ COPILOTFLEET_PROVIDER_TYPE: "echo" });
    expect(kinds(manifests)).toEqual([
      "Namespace",
      "ConfigMap",
      "Service",
      "Service",
      "NetworkPolicy",
      "StatefulSet",
      "PodDisruptionBudget",
    ]);
    expect(find(manifests, "StatefulSet").spec?.replicas).toBe(1);
  });

  it("deploy kubernetes with Redis and shared storage renders one volume claim for all hosts, an autoscaler and a gc job", () => {
    const { manifests } = kubernetes(REDIS, {
      storage: "shared",
      replicas: 3,
      "storage-class": "nfs",
      "storage-size": "80Gi",
    });
    expect(kinds(manifests)).toEqual(
      expect.arrayContaining(["PersistentVolumeClaim", "HorizontalPodAutoscaler", "CronJob"]),
    );
    expect(find(manifests, "PersistentVolumeClaim").spec).toEqual({
      accessModes: ["ReadWriteMany"],
      resources: { requests: { storage: "80Gi" } },
      storageClassName: "nfs",
    });
    expect(hostContainer(manifests).volumeMounts).toContainEqual({
      name: "shared",
      mountPath: "/var/lib/copilotfleet-shared",
    });
    const set = find(manifests, "StatefulSet").spec;
    expect(set).not.toHaveProperty("replicas"); // because the autoscaler sets it
    expect(find(manifests, "HorizontalPodAutoscaler").spec).toMatchObject({
      minReplicas: 3,
      maxReplicas: 6,
      behavior: { scaleDown: { stabilizationWindowSeconds: 1800 } },
    });
  });

  it("with local storage, deploy kubernetes renders no scaling down and no gc job, and explains the missing job", () => {
    const { manifests, yaml } = kubernetes(REDIS);
    expect(find(manifests, "HorizontalPodAutoscaler").spec).toMatchObject({
      behavior: { scaleDown: { selectPolicy: "Disabled" } },
    });
    expect(kinds(manifests)).not.toContain("CronJob");
    expect(yaml.replace(/\n# /g, " ")).toContain("There is no CronJob for gc");
  });

  it("the autoscaler scales by a metric that serve exports", async () => {
    const spec = find(kubernetes(REDIS).manifests, "HorizontalPodAutoscaler").spec as unknown as {
      metrics: { pods: { metric: { name: string } } }[];
    };
    const text = await (await FleetMetrics.open({ version: "0" })).text();
    expect(text).toContain(`\n${spec.metrics[0]?.pods.metric.name} `);
  });

  it("a host's pod runs without privileges, behind an init, and with time to drain", () => {
    const { manifests } = kubernetes({ ...REDIS, COPILOTFLEET_DRAIN_TIMEOUT: "2m" });
    const { template } = (find(manifests, "StatefulSet") as unknown as StatefulSet).spec;
    expect(template.spec).toMatchObject({
      enableServiceLinks: false,
      automountServiceAccountToken: false,
      securityContext: {
        runAsNonRoot: true,
        runAsUser: 10_001,
        fsGroup: 10_001,
        fsGroupChangePolicy: "OnRootMismatch",
        seccompProfile: { type: "RuntimeDefault" },
      },
    });
    const container = hostContainer(manifests);
    expect(container.securityContext).toEqual({
      allowPrivilegeEscalation: false,
      readOnlyRootFilesystem: true,
      capabilities: { drop: ["ALL"] },
    });
    expect(container.command).toEqual(["/usr/bin/tini", "--", "copilotfleet"]);
    const sleep = Number(container.lifecycle.preStop.exec.command[1]);
    expect(template.spec.terminationGracePeriodSeconds).toBeGreaterThan(120 + sleep + 20);
    expect(container).toMatchObject({
      readinessProbe: { httpGet: { path: "/readyz" } },
      livenessProbe: { httpGet: { path: "/healthz" } },
    });
  });

  it("the pods have the RuntimeClass of --runtime-class, and a limit for the disk space that they use on a node", () => {
    const { manifests } = kubernetes(REDIS, { storage: "shared", "runtime-class": "gvisor" });
    const { jobTemplate } = find(manifests, "CronJob").spec as unknown as {
      jobTemplate: { spec: { template: { spec: PodSpec } } };
    };
    for (const spec of [podOf(manifests), jobTemplate.spec.template.spec]) {
      expect(spec.runtimeClassName).toBe("gvisor");
      const [container] = spec.containers;
      expect(container?.resources.limits).toEqual({ "ephemeral-storage": "1024Mi" });
      const folders = spec.volumes.filter(({ emptyDir }) => emptyDir !== undefined);
      expect(folders.length).toBeGreaterThan(0);
      for (const { emptyDir } of folders) expect(emptyDir).toEqual({ sizeLimit: "256Mi" });
    }
    expect(podOf(kubernetes(REDIS).manifests)).not.toHaveProperty("runtimeClassName");
  });

  describe("the network policy", () => {
    const OPENAI = { COPILOTFLEET_PROVIDER_TYPE: "openai" };
    const METADATA = ["169.254.169.254", "169.254.170.2", "168.63.129.16", "100.100.100.200", "fd00:ec2::254"];

    /** Whether the policy lets a host reach this address and port outside of the cluster. */
    function isOpen(
      env: Record<string, string>,
      options: Parameters<typeof kubernetes>[1],
      address: string,
      port: number,
    ) {
      const { egress } = policyOf(kubernetes({ ...REDIS, ...env }, options).manifests);
      return egress
        .filter(({ ports }) => ports.some((open) => open.port === port))
        .some(({ to }) => to.some(({ ipBlock }) => ipBlock !== undefined && isIn(ipBlock, address)));
    }

    it("the network policy lets hosts reach the model on the Internet, and no private or metadata address", () => {
      const model = { ...OPENAI, COPILOTFLEET_PROVIDER_BASE_URL: "https://models.example/v1" };
      expect(isOpen(model, {}, "203.0.113.7", 443)).toBe(true);
      expect(isOpen(model, {}, "2606:4700::1", 443)).toBe(true);
      expect(isOpen(model, {}, "203.0.113.7", 80)).toBe(false);
      for (const address of [...METADATA, "10.0.0.1", "172.31.0.1", "192.168.1.1", "127.0.0.1", "fd12::1", "fe80::1"])
        expect(isOpen(model, {}, address, 443), address).toBe(false);
      const options = { "egress-cidr": ["10.1.0.0/16"], "egress-port": [3128] };
      expect(isOpen(model, options, "10.1.2.3", 443)).toBe(true);
      expect(isOpen(model, options, "10.1.2.3", 3128)).toBe(true);
      expect(isOpen(model, options, "10.2.2.3", 443)).toBe(false);
    });

    it("the network policy lets hosts reach the identity providers and GitHub, with which users sign on", () => {
      const jwt = (issuer: object) => ({
        COPILOTFLEET_IDENTITY_JWT: JSON.stringify([
          { issuer: "https://login.example:8443", audience: "fleet", ...issuer },
        ]),
      });
      expect(isOpen(jwt({}), {}, "203.0.113.7", 8443)).toBe(true);
      expect(isOpen(jwt({ jwks: "https://keys.example/jwks" }), {}, "203.0.113.7", 443)).toBe(true);
      expect(isOpen(jwt({ jwks: "/etc/jwks.json" }), {}, "203.0.113.7", 8443)).toBe(false);
      const github = { COPILOTFLEET_IDENTITY_GITHUB_API: "https://api.github.com" };
      expect(isOpen(github, {}, "203.0.113.7", 443)).toBe(true);
    });

    it("the files with the keys of identity providers come from the Secret", () => {
      const issuer = { issuer: "https://login.example", audience: "fleet", jwks: "/etc/keys/jwks.json" };
      const elsewhere = { ...issuer, issuer: "https://other.example", jwks: "https://other.example/keys" };
      const { notices, yaml } = kubernetes({
        ...REDIS,
        COPILOTFLEET_IDENTITY_JWT: JSON.stringify([elsewhere, issuer]),
      });
      expect(notices.join("\n")).toMatch(/must hold .*\bjwks-2\.json\b/);
      expect(yaml).toContain('"jwks": "/run/secrets/copilotfleet/jwks-2.json"');
      expect(yaml).toContain('"jwks": "https://other.example/keys"');
      expect(yaml).not.toContain("/etc/keys");
    });

    it("the network policy lets hosts reach Redis at a private address, but at no metadata address", () => {
      expect(isOpen({}, {}, "10.0.0.1", 6380)).toBe(true);
      expect(isOpen({}, {}, "10.0.0.1", 443)).toBe(false);
      for (const address of METADATA) expect(isOpen({}, {}, address, 6380), address).toBe(false);
      const literal = { COPILOTFLEET_STORE: "rediss://10.0.0.9:6380/0" };
      expect(isOpen(literal, {}, "10.0.0.9", 6380)).toBe(true);
      expect(isOpen(literal, {}, "10.0.0.8", 6380)).toBe(false);
    });

    it("the network policy lets hosts reach services of the cluster by the labels of their pods or namespaces", () => {
      const services = {
        ...OPENAI,
        COPILOTFLEET_PROVIDER_BASE_URL: "http://model.ai.svc.cluster.local:8080/v1",
        COPILOTFLEET_STORE: "rediss://redis:6380/0",
      };
      const { egress } = policyOf(kubernetes(services).manifests);
      const to = (port: number) => egress.find(({ ports }) => ports.some((open) => open.port === port))?.to;
      expect(to(8080)).toEqual([{ namespaceSelector: { matchLabels: { "kubernetes.io/metadata.name": "ai" } } }]);
      expect(to(6380)).toEqual([{ podSelector: {} }]);
      expect(egress.flatMap(({ to: peers }) => peers).filter(({ ipBlock }) => ipBlock !== undefined)).toEqual([
        { ipBlock: { cidr: "169.254.20.10/32" } },
      ]);
    });

    it("the network policy lets only the namespaces of --client-namespace reach the front door", () => {
      const { ingress } = policyOf(kubernetes(REDIS, { "client-namespace": ["web"] }).manifests);
      expect(ingress[0]?.from[0]).toEqual({
        namespaceSelector: { matchLabels: { "kubernetes.io/metadata.name": "web" } },
      });
    });
  });

  it("the network policy lets the gc job reach the hosts even if all clients are in other namespaces", () => {
    const { manifests } = kubernetes(REDIS, { storage: "shared", "client-namespace": ["web"] });
    const { jobTemplate } = find(manifests, "CronJob").spec as unknown as {
      jobTemplate: { spec: { template: { metadata: { labels: Record<string, string> } } } };
    };
    const { labels } = jobTemplate.spec.template.metadata;
    const { ingress } = find(manifests, "NetworkPolicy").spec as unknown as {
      ingress: { from: { podSelector?: { matchLabels: Record<string, string> } }[] }[];
    };
    const from = ingress[0]?.from ?? [];
    const selectors = from.flatMap(({ podSelector }) => (podSelector === undefined ? [] : [podSelector.matchLabels]));
    const isSelected = (selector: Record<string, string>) =>
      Object.entries(selector).every(([name, value]) => labels[name] === value);
    expect(selectors.filter(isSelected)).toHaveLength(1);
  });

  it("a change of the configuration changes the pod template, so that Kubernetes replaces the pods", () => {
    const annotation = (env: Record<string, string>) =>
      find(kubernetes(env).manifests, "StatefulSet").spec?.template?.metadata?.annotations;
    expect(annotation({ ...REDIS, COPILOTFLEET_SESSION_MODEL: "a" })).not.toEqual(
      annotation({ ...REDIS, COPILOTFLEET_SESSION_MODEL: "b" }),
    );
  });

  it("the manifests use the paths and the user of the Dockerfile", () => {
    const dockerfile = readFileSync(new URL("../../Dockerfile", import.meta.url), "utf8");
    const { manifests } = kubernetes(REDIS, { storage: "shared" });
    const { command, workingDir, env } = hostContainer(manifests);
    const { runAsUser, runAsGroup } = podOf(manifests).securityContext;
    expect(dockerfile).toContain(`ENTRYPOINT ${JSON.stringify(command).replaceAll(",", ", ")}`);
    for (const text of [
      `USER ${runAsUser}:${runAsGroup}`,
      `COPILOTFLEET_HOME=${env.find(({ name }) => name === "COPILOTFLEET_HOME")?.value}`,
      `WORKDIR ${workingDir}\n`,
      "/var/lib/copilotfleet-shared",
    ])
      expect(dockerfile).toContain(text);
  });
});

describe("secrets", () => {
  const SECRET = {
    COPILOTFLEET_STORE: "rediss://fleet@redis.example:6379/0",
    COPILOTFLEET_PROVIDER_TYPE: "azure",
    COPILOTFLEET_PROVIDER_BASE_URL: "https://models.example/v1?code=canary-query",
    COPILOTFLEET_PROVIDER_API_KEY: '{"env":"MODEL_KEY"}',
    MODEL_KEY: "canary-key",
    COPILOTFLEET_AUTH_GITHUB_TOKEN: '{"env":"TEAM_TOKEN"}',
    TEAM_TOKEN: "canary-token",
    HTTPS_PROXY: "http://proxy:canary-proxy@proxy.example",
  };

  it("secrets in manifests are references, and their values appear nowhere", () => {
    const { manifests, yaml, notices } = kubernetes(SECRET, { secret: "keys", "redis-secret": "redis" });
    expect(yaml + JSON.stringify({ manifests, notices })).not.toContain("canary");
    expect(notices.join()).toMatch(/The Secret keys must hold COPILOTFLEET_STORE_KEY, MODEL_KEY, .*TEAM_TOKEN/);
    const { env, volumeMounts } = hostContainer(manifests);
    const files = env.filter(({ name }) => name.endsWith("_FILE")).map(({ name, value }) => [name, value]);
    expect(files).toEqual([
      ["COPILOTFLEET_STORE_OPTIONS_PASSWORD_FILE", "/run/secrets/copilotfleet/REDIS_PASSWORD"],
      ["COPILOTFLEET_STORE_OPTIONS_KEY_FILE", "/run/secrets/copilotfleet/COPILOTFLEET_STORE_KEY"],
      ["COPILOTFLEET_PROVIDER_API_KEY_FILE", "/run/secrets/copilotfleet/MODEL_KEY"],
      ["COPILOTFLEET_PROVIDER_BASE_URL_FILE", "/run/secrets/copilotfleet/COPILOTFLEET_PROVIDER_BASE_URL"],
      ["COPILOTFLEET_AUTH_GITHUB_TOKEN_FILE", "/run/secrets/copilotfleet/TEAM_TOKEN"],
    ]);
    // A secret becomes a variable of the host only if servers get that variable, too.
    expect(env.filter(({ valueFrom }) => valueFrom?.secretKeyRef !== undefined)).toEqual([
      { name: "HTTPS_PROXY", valueFrom: { secretKeyRef: { name: "keys", key: "HTTPS_PROXY", optional: true } } },
    ]);
    expect(volumeMounts).toContainEqual({ name: "secrets", mountPath: "/run/secrets/copilotfleet", readOnly: true });
    const item = (name: string, key: string) => ({ secret: { name, items: [{ key, path: key }] } });
    expect(volumesOf(manifests)).toContainEqual({
      name: "secrets",
      projected: {
        sources: [
          item("redis", "REDIS_PASSWORD"),
          item("keys", "COPILOTFLEET_STORE_KEY"),
          item("keys", "MODEL_KEY"),
          item("keys", "COPILOTFLEET_PROVIDER_BASE_URL"),
          item("keys", "TEAM_TOKEN"),
        ],
        defaultMode: 0o440,
      },
    });
  });

  it.each([
    ["variables", { COPILOTFLEET_AUTH_GITHUB_TOKEN: '{"env":"TOKEN_{user}"}' }, "TOKEN_{user}"],
    ["files", { COPILOTFLEET_AUTH_GITHUB_TOKEN_FILE: "/keys/{user}/github" }, "{user}-github"],
  ])("each user's own GitHub token from %s is a file of a separate Secret", (_, variables, name) => {
    const { manifests, notices } = kubernetes({ ...REDIS, ...variables });
    expect(hostContainer(manifests).env).toContainEqual({
      name: "COPILOTFLEET_AUTH_GITHUB_TOKEN_FILE",
      value: `/run/secrets/copilotfleet-users/${name}`,
    });
    expect(volumesOf(manifests)).toContainEqual({
      name: "user-secrets",
      secret: { secretName: "fleet-user-tokens", defaultMode: 0o440 },
    });
    expect(notices.join()).toContain(`The Secret fleet-user-tokens must hold ${name} for each user.`);
    const config = JSON.parse(String(find(manifests, "ConfigMap").data?.["config.json"])) as object;
    expect(config).not.toHaveProperty("auth");
  });

  it("deploy kubernetes refuses a token file whose name cannot be a key of a Secret", () => {
    expect(refusal(() => kubernetes({ ...REDIS, COPILOTFLEET_AUTH_GITHUB_TOKEN_FILE: "/keys/it's" }))).toMatchObject({
      exit: 3,
      message: expect.stringContaining('"it\'s"'),
    });
  });
});

describe("deployments that cannot run in Kubernetes", () => {
  it.each([
    [{}, { replicas: 3 }, 2, /^--replicas 3 needs a store in Redis, but the store is "file"/],
    [
      REDIS,
      { replicas: 3, "max-replicas": 2 },
      2,
      /--max-replicas is "2"\. Allowed: at least the number of --replicas, which is 3/,
    ],
    [{ COPILOTFLEET_STORE: "redis://127.0.0.1:6379" }, {}, 3, /store is "redis:\/\/127.0.0.1:6379\/0"\. In a pod/],
  ])("deploy kubernetes refuses the configuration %j with the options %j", (env, options, exit, message) => {
    expect(refusal(() => kubernetes(env as Record<string, string>, options))).toMatchObject({
      exit,
      message: expect.stringMatching(message),
    });
  });

  it("validate, which checks all rendered manifests, rejects one that breaks the schema of its kind", () => {
    const set = find(kubernetes(REDIS).manifests, "StatefulSet");
    const broken = (change: object) => ({ ...set, spec: { ...set.spec, ...change } }) as unknown as Manifest;
    expect(() => validate(broken({}))).not.toThrow();
    expect(() => validate({ ...broken({}), apiVersion: "apps/v2" } as unknown as Manifest)).toThrow(/apiVersion/);
    expect(() => validate(broken({ replicas: "three" }))).toThrow(/spec\/replicas must be integer/);
    expect(() => validate(broken({ selector: undefined }))).toThrow(/selector/);
    const quantity = { volumeClaimTemplates: [{ spec: { resources: { requests: { storage: "10 Gigs" } } } }] };
    expect(() => validate(broken(quantity))).toThrow(/quantity/);
  });
});

describe("kubectl", () => {
  const variants: [string, () => { yaml: string; manifests: unknown[] }][] = [
    ["one host", () => kubernetes({ COPILOTFLEET_PROVIDER_TYPE: "echo" })],
    ["hosts with separate volumes", () => kubernetes(REDIS)],
    ["a fleet whose name YAML 1.1 would read as a boolean", () => kubernetes(REDIS, { name: "on" })],
    ["the HTTP API behind an Ingress", () => kubernetes(REDIS, { "ingress-host": "fleet.example" })],
    ["hosts with shared storage", () => kubernetes(REDIS, { storage: "shared", replicas: 2 })],
  ];

  it.each(variants)("the YAML for %s contains the rendered objects in YAML 1.1 and 1.2", (_, render) => {
    const { yaml, manifests } = render();
    for (const version of ["1.1", "1.2"] as const) {
      expect(parseAllDocuments(yaml, { version }).map((document) => document.toJS())).toEqual(manifests);
    }
  });

  it.skipIf(!has("kubectl")).each(variants)(
    "kubectl accepts the YAML for %s (skipped without kubectl)",
    (_, render) => {
      const folder = mkdtempSync(join(tmpdir(), "copilotfleet-kubectl-"));
      onTestFinished(() => rmSync(folder, { recursive: true }));
      const { yaml, manifests } = render();
      const build = (text: string) => {
        writeFileSync(join(folder, "fleet.yaml"), text);
        writeFileSync(join(folder, "kustomization.yaml"), "resources: [fleet.yaml]\n");
        return spawnSync("kubectl", ["kustomize", folder], { encoding: "utf8" });
      };
      const built = build(yaml);
      expect(built).toMatchObject({ status: 0, stderr: "" });
      const objects = parseAllDocuments(built.stdout).map((document) => document.toJS() as object);
      expect(objects).toHaveLength(manifests.length);
      expect(objects).toEqual(expect.arrayContaining(manifests));
      expect(build(yaml.replace("kind: Namespace", "kin: Namespace")).status).not.toBe(0);
    },
  );
});

it("a host's pod mounts the configuration where the command looks for it", () => {
  expect(hostContainer(kubernetes(REDIS).manifests).volumeMounts).toContainEqual({
    name: "config",
    mountPath: "/etc/copilotfleet",
    readOnly: true,
  });
});
