import type { Layer } from "../../config/load/layers.js";
import type { Config } from "../../config/schema.js";
import { quote } from "../../errors.js";
import { TOKENS_FOLDER } from "../container.js";
import { describe } from "../deployment.js";
import { unfit } from "../problem.js";
import { type Settings, STORE_VARIABLE } from "../settings.js";
import { yamlStream } from "../yaml.js";
import * as objects from "./objects.js";
import { type KubernetesOptions, type Plan, planOf } from "./options.js";

/** A Kubernetes object. The types are generated from the schemas of the Kubernetes API. */
export type Manifest = ReturnType<(typeof objects)[keyof typeof objects]>;

/** The allowed keys of a Secret: https://kubernetes.io/docs/concepts/configuration/secret/#restriction-names-data */
const SECRET_KEY = /^[-._A-Za-z0-9]{1,200}$/;
const SCALING = `The autoscaler needs an adapter that provides the Prometheus metric to Kubernetes (custom.metrics.k8s.io),
such as prometheus-adapter. Without an adapter, the StatefulSet keeps its current number of hosts.`;
const NO_LIMIT = `The container has no memory limit, because reaching it would end every server in the pod at once: the kernel
kills all processes of a container together. recycle.maxMemory replaces single servers that have grown, between turns.`;
const GC_SHARED = `This job deletes expired sessions from the shared folder even if no host stays up long enough to do so.
In addition, each serve runs gc every serve.gcInterval.`;
const GC_LOCAL = `There is no CronJob for gc. The sessions are on the pods' own volumes, and another pod must not mount these,
because it cannot see the processes that use them. Each serve runs gc on its own sessions every serve.gcInterval.`;

/** Renders the fleet as Kubernetes objects. The tests validate each against the schemas of the Kubernetes API. */
export function renderKubernetes(
  loaded: { config: Config; given: Layer },
  options: KubernetesOptions,
): { manifests: Manifest[]; notices: string[]; yaml: string } {
  const plan = planOf(describe(loaded, options), options);
  const { deployment } = plan;
  const file = configFile(deployment.settings);
  const shared = deployment.storage === "shared";
  const entries: { value: Manifest; comment?: string }[] = [
    { value: objects.namespace(plan) },
    { value: objects.configMap(plan, file) },
    ...(shared ? [{ value: objects.sharedClaim(plan) }] : []),
    { value: objects.hostsService(plan) },
    { value: objects.frontService(plan) },
    { value: objects.networkPolicy(plan) },
    { value: objects.statefulSet(plan, file), comment: NO_LIMIT },
    { value: objects.disruptionBudget(plan), ...(shared ? {} : { comment: GC_LOCAL }) },
    ...(deployment.maxReplicas > deployment.replicas ? [{ value: objects.autoscaler(plan), comment: SCALING }] : []),
    ...(shared ? [{ value: objects.gcJob(plan), comment: GC_SHARED }] : []),
  ];
  const notices = [...secretNotices(plan), ...deployment.notices];
  return { manifests: entries.map(({ value }) => value), notices, yaml: yamlStream(notices, entries) };
}

/**
 * Replaces `auth.githubTokenFile` with a command that prints the file. `auth.githubTokenFile` refuses files that a
 * group can read. But the files of a Secret belong to root, and only `fsGroup` lets us read them. A command may read
 * them, because the group has no other member.
 */
function configFile({ file, tokenFiles }: Settings): Record<string, unknown> {
  if (tokenFiles === null) return file;
  if (!SECRET_KEY.test(tokenFiles.name.replaceAll("{user}", "u"))) {
    throw unfit(`auth.githubTokenFile ends in ${quote(tokenFiles.name)}, which is not a valid key of a Secret`, [
      "Use only letters, digits, -, _ and . in the name of the file.",
    ]);
  }
  return { ...file, auth: { githubTokenCommand: `cat '${TOKENS_FOLDER}/${tokenFiles.name}'` } };
}

function secretNotices({ deployment, names, options }: Plan): string[] {
  const { secrets, tokenFiles, userTokenVariables } = deployment.settings;
  const wanted = new Map<string, string[]>();
  const want = (secret: string, key: string) => wanted.set(secret, [...(wanted.get(secret) ?? []), key]);
  for (const { name, required } of secrets)
    if (required) want(name === STORE_VARIABLE ? names.redisSecret : names.secret, name);
  if (tokenFiles !== null && !tokenFiles.perUser) want(names.secret, tokenFiles.name);
  const ofUsers = userTokenVariables ?? (tokenFiles?.perUser === true ? tokenFiles.name : null);
  if (ofUsers !== null) want(names.userTokens, `${ofUsers} for each user`);
  return [...wanted].map(([secret, keys]) => {
    const create = `kubectl create secret generic ${secret} --namespace ${options.namespace} --from-env-file=FILE`;
    return `The Secret ${secret} must hold ${keys.join(", ")}. To create it from a file with a line KEY=VALUE for each: ${create}`;
  });
}
