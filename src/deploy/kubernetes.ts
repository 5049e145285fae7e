import { isIP } from "node:net";
import { parseAllDocuments } from "yaml";
import { quote } from "../base/errors.js";
import { sha256 } from "../base/values/text.js";
import type { Config } from "../config/schema.js";
import {
  badFlag,
  checkSandbox,
  type DeployOptions,
  describe,
  hostOf,
  type Loaded,
  servicesOf,
  unfit,
} from "./deployment.js";
import { configText, inVariables, REDIS_PASSWORD, type SecretFile, secretPath } from "./settings.js";
import { diskGib, processorMillis } from "./sizing.js";
import { commented, escapeUnicode, fill, fillNotices, inYaml } from "./template.js";

/** The flags of `deploy kubernetes`, whose descriptions are in `src/cli/flags/deploy.ts`. */
export interface KubernetesOptions extends DeployOptions {
  namespace: string;
  "max-replicas"?: number | undefined;
  secret?: string | undefined;
  "redis-secret"?: string | undefined;
  "storage-size"?: string | undefined;
  "storage-class"?: string | undefined;
  "monitoring-namespace": string;
  "client-namespace": readonly string[];
  "egress-port"?: readonly number[] | undefined;
  "egress-cidr": readonly string[];
  "ingress-host"?: string | undefined;
  "ingress-class"?: string | undefined;
  "ingress-secret"?: string | undefined;
  "ingress-namespace": string;
  "runtime-class"?: string | undefined;
}

/** The allowed keys of a Secret: https://kubernetes.io/docs/concepts/configuration/secret/#restriction-names-data */
const SECRET_KEY = /^[-._A-Za-z0-9]{1,200}$/;

/**
 * Renders the fleet as Kubernetes objects. The tests validate each object against the schemas of the Kubernetes API.
 */
export function renderKubernetes(loaded: Loaded, options: KubernetesOptions) {
  const { config } = loaded;
  const { name, namespace, "ingress-host": ingressHost, "redis-secret": redisSecret } = options;
  // Do not check this for another RuntimeClass, because its runtime may have its own kernel and allow namespaces.
  if (options["runtime-class"] === undefined) checkSandbox(config, "the runtime's filter of system calls");
  const fleet = describe(loaded, options, {
    secretPassword: redisSecret !== undefined,
    http: ingressHost !== undefined,
  });
  const { capacity, settings, view } = fleet;
  const { secrets } = settings;
  checkNames(secrets);
  const maxReplicas = fleet.hasRedis ? (options["max-replicas"] ?? 2 * view.replicas) : 1;
  if (maxReplicas < view.replicas)
    throw badFlag("max-replicas", maxReplicas, `at least the number of --replicas, which is ${view.replicas}`);
  const secret = options.secret ?? name;
  const userTokens = `${secret}-user-tokens`;
  const secretOf = ({ name: key, perUser }: SecretFile) =>
    perUser ? userTokens : key === REDIS_PASSWORD ? (redisSecret ?? secret) : secret;
  const forFleet = secrets.filter(({ perUser }) => !perUser);
  const stateSize = `${diskGib(capacity, !view.shared)}Gi`;
  const sharedSize = `${maxReplicas * diskGib({ servers: 0, sessions: capacity.sessions }, true)}Gi`;
  const text = escapeUnicode(configText(settings.values));
  const service = `${name}.${namespace}`;
  const inCluster = [name, service, `${service}.svc`, `${service}.svc.cluster.local`];
  const clientNamespaces = [...new Set(options["client-namespace"])];
  const all = {
    ...view,
    namespace,
    secret,
    configLines: text.trimEnd().split("\n"),
    configHash: sha256(text),
    // The volume for sessions has the size and the class of the options: the shared one, or one for each host.
    sharedSize: options["storage-size"] ?? sharedSize,
    sharedClass: options["storage-class"],
    stateSize: view.shared ? stateSize : (options["storage-size"] ?? stateSize),
    stateClass: view.shared ? undefined : options["storage-class"],
    ingressHost,
    ingressClass: options["ingress-class"],
    ingressSecret: options["ingress-secret"] ?? `${name}-http-tls`,
    longestBody: config.serve.maxFrameBytes,
    origins: [
      ...fleet.origins,
      ...(ingressHost === undefined ? [] : [`https://${ingressHost}`]),
      ...inCluster.map((host) => `${view.scheme}://${host}:4380`),
    ].join(","),
    clientNamespaces,
    apiNamespaces:
      ingressHost === undefined || clientNamespaces.length === 0
        ? clientNamespaces
        : [...new Set([...clientNamespaces, options["ingress-namespace"]])],
    monitoringNamespace: options["monitoring-namespace"],
    egress: egressOf(config, fleet, options),
    maxReplicas,
    // If an autoscaler sets the number of replicas, leave the number out, because applying the manifest again would
    // reset it.
    scales: maxReplicas > view.replicas,
    // The fraction of the planned sessions at which another host starts is 0.8.
    sessionsPerHost: Math.max(1, Math.floor(capacity.sessions * 0.8)),
    hostPod: { serves: true, verb: "serve" },
    gcPod: { serves: false, verb: "gc" },
    graceSeconds: 5 + view.graceSeconds,
    runtimeClass: options["runtime-class"],
    secretPaths: inVariables(secrets).map((one) => ({ variable: one.variable, path: secretPath(one) })),
    passedOn: settings.passedOn,
    hasSecrets: forFleet.length > 0,
    secretKeys: [...new Map(forFleet.map((one) => [one.name, { key: one.name, secretName: secretOf(one) }])).values()],
    userTokens: secrets.some(({ perUser }) => perUser) ? userTokens : undefined,
    processorMillis: processorMillis(capacity),
    wanted: [...new Set(secrets.map(secretOf))].map((secretName) => {
      const keys = secrets.filter((one) => secretOf(one) === secretName);
      const names = new Set(keys.map(({ name: key, perUser }) => (perUser ? `${key} for each user` : key)));
      return { secretName, keys: [...names].join(", ") };
    }),
  };
  const notices = fillNotices("kubernetes/notices.txt", all);
  const yaml = commented(notices) + fill("kubernetes/fleet.yaml", all, inYaml);
  const manifests = parseAllDocuments(yaml).map((document) => document.toJS() as { kind: string });
  return { manifests, notices, yaml };
}

/** Refuses files whose names cannot be keys of a Secret. */
function checkNames(secrets: readonly SecretFile[]): void {
  const wrong = secrets.find(({ name }) => !SECRET_KEY.test(name.replaceAll("{user}", "u")));
  if (wrong === undefined) return;
  const key = wrong.variable === "COPILOTFLEET_PROVIDER_API_KEY_FILE" ? "provider.apiKey" : "auth.githubToken";
  throw unfit(`${key} ends in ${quote(wrong.name)}, which is not a valid key of a Secret`, [
    "Use only letters, digits, -, _ and . in the name of the file.",
  ]);
}

/**
 * The rules of the network policy for Redis, and for the model, GitHub and identity providers.
 *
 * A policy cannot contain host names, so for a service whose name is outside of the cluster, it allows every address of
 * the Internet. It allows private addresses only for Redis (at its port), for services that the configuration names by
 * address, and for the networks of `--egress-cidr`.
 */
function egressOf(config: Config, { hasRedis, redis }: ReturnType<typeof describe>, options: KubernetesOptions) {
  const more = options["egress-port"] ?? [];
  const outside = new Set(more);
  const rules: object[] = [];
  if (hasRedis)
    rules.push({ ...(peerOf(redis?.host ?? null) ?? { allButMetadata: true }), ports: [redis?.port ?? 6379] });
  for (const url of servicesOf(config)) {
    const port = Number(url.port || (url.protocol === "https:" ? 443 : 80));
    const peer = peerOf(hostOf(url));
    if (peer === null) outside.add(port);
    // A policy applies to the pod's port, which may differ from its Service's port. So allow the ports of
    // --egress-port, too.
    else rules.push({ ...peer, ports: [...new Set([port, ...more])] });
  }
  if (outside.size > 0)
    rules.push({ internet: true, networks: options["egress-cidr"], ports: [...outside].sort((a, b) => a - b) });
  return rules;
}

/**
 * The peer for a host: its address, or all pods of the namespace of a Service. Null for a name outside of the cluster.
 */
function peerOf(host: string | null): object | null {
  if (host === null) return null;
  if (isIP(host) !== 0) return { network: `${host}/${isIP(host) === 6 ? 128 : 32}` };
  if (!host.includes(".")) return { sameNamespace: true };
  const [, namespace] = /^[^.]+\.([^.]+)\.svc(?:\.|$)/.exec(host) ?? [];
  return namespace === undefined ? null : { ofNamespace: namespace };
}
