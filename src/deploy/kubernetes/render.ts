import type { Layer } from "../../config/load/layers.js";
import type { Config } from "../../config/schema.js";
import { quote } from "../../errors.js";
import { describe } from "../deployment.js";
import { checkSandbox, unfit } from "../problem.js";
import type { SecretFile } from "../settings.js";
import { weakened } from "../weakened.js";
import { yamlStream } from "../yaml.js";
import { httpNotices, ingress } from "./http.js";
import { networkPolicy } from "./network.js";
import * as objects from "./objects.js";
import { type KubernetesOptions, type Plan, planOf } from "./options.js";
import { secretOf } from "./pod.js";

/** A Kubernetes object. The types are generated from the schemas of the Kubernetes API. */
export type Manifest = ReturnType<(typeof objects)[keyof typeof objects] | typeof networkPolicy | typeof ingress>;

/** The allowed keys of a Secret: https://kubernetes.io/docs/concepts/configuration/secret/#restriction-names-data */
const SECRET_KEY = /^[-._A-Za-z0-9]{1,200}$/;
const SCALING = `The autoscaler needs an adapter that provides the Prometheus metric to Kubernetes (custom.metrics.k8s.io),
such as prometheus-adapter. Without an adapter, the StatefulSet keeps its current number of hosts.`;
const NETWORK = `The hosts reach no private addresses, except those of Redis, of other hosts and of services in the cluster, and no
address at which a cloud gives away the keys of a node. --egress-cidr opens a private network, for example for a model.`;
const INGRESS = `The annotations are for ingress-nginx: it must not collect the events of streams, nor end turns that take long. Other
controllers need the same from their own settings.`;
const NO_LIMIT = `A pod cannot limit its processes. Set podPidsLimit of the kubelet. The container has no memory limit, because reaching it would end every server in the pod at once: the kernel
kills all processes of a container together. recycle.maxMemory replaces single servers that have grown, between turns.`;
const GC_SHARED = `This job deletes expired sessions from the shared folder even if no host stays up long enough to do so.
In addition, each serve runs gc every hour.`;
const PARENTS = weakened(
  "COPILOTFLEET_ALLOW_UNSAFE_PARENTS=1 in the job for gc",
  "its state folder is in an emptyDir with mode 0777. No other account is in that pod",
);
const GC_LOCAL = `There is no CronJob for gc. The sessions are on the pods' own volumes, and another pod must not mount these,
because it cannot see the processes that use them. Each serve runs gc on its own sessions every hour.`;

/**
 * Renders the fleet as Kubernetes objects. The tests validate each object against the schemas of the Kubernetes API.
 */
export function renderKubernetes(
  loaded: { config: Config; given: Layer },
  options: KubernetesOptions,
): { manifests: Manifest[]; notices: string[]; yaml: string } {
  // Do not check this for another RuntimeClass, because its runtime may have its own kernel and allow namespaces.
  if (options.runtimeClass === undefined) checkSandbox(loaded.config, "the runtime's filter of system calls");
  const http = options.ingressHost !== undefined;
  const plan = planOf(describe(loaded, { ...options, http }), options);
  const { deployment } = plan;
  checkNames(deployment.settings.secrets);
  const shared = deployment.storage === "shared";
  const entries: { value: Manifest; comment?: string }[] = [
    { value: objects.namespace(plan) },
    { value: objects.configMap(plan) },
    ...(shared ? [{ value: objects.sharedClaim(plan) }] : []),
    { value: objects.hostsService(plan) },
    { value: objects.frontService(plan) },
    ...(options.ingressHost === undefined ? [] : [{ value: ingress(plan, options.ingressHost), comment: INGRESS }]),
    { value: networkPolicy(plan), comment: NETWORK },
    { value: objects.statefulSet(plan), comment: NO_LIMIT },
    { value: objects.disruptionBudget(plan), ...(shared ? {} : { comment: GC_LOCAL }) },
    ...(deployment.maxReplicas > deployment.replicas ? [{ value: objects.autoscaler(plan), comment: SCALING }] : []),
    ...(shared ? [{ value: objects.gcJob(plan), comment: `${GC_SHARED} ${PARENTS}` }] : []),
  ];
  const notices = [...secretNotices(plan), ...httpNotices(plan), ...deployment.notices, ...(shared ? [PARENTS] : [])];
  return { manifests: entries.map(({ value }) => value), notices, yaml: yamlStream(notices, entries) };
}

/** Refuses files whose names cannot be keys of a Secret. */
function checkNames(secrets: readonly SecretFile[]): void {
  const wrong = secrets.find(({ name }) => !SECRET_KEY.test(name.replaceAll("{user}", "u")));
  if (wrong === undefined) return;
  const key = wrong.variable === "COPILOTFLEET_PROVIDER_API_KEY_FILE" ? "provider.apiKeyFile" : "auth.githubTokenFile";
  throw unfit(`${key} ends in ${quote(wrong.name)}, which is not a valid key of a Secret`, [
    "Use only letters, digits, -, _ and . in the name of the file.",
  ]);
}

function secretNotices({ deployment, names, options }: Plan): string[] {
  const wanted = new Map<string, Set<string>>();
  for (const { name, perUser } of deployment.settings.secrets) {
    const secret = perUser ? names.userTokens : secretOf(names, name);
    wanted.set(secret, (wanted.get(secret) ?? new Set()).add(perUser ? `${name} for each user` : name));
  }
  return [...wanted].map(([secret, keys]) => {
    const create = `kubectl create secret generic ${secret} --namespace ${options.namespace} --from-env-file=FILE`;
    return `The Secret ${secret} must hold ${[...keys].join(", ")}. To create it from a file with a line KEY=VALUE for each: ${create}`;
  });
}
