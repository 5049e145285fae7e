import type { Layer } from "../../config/layers.js";
import type { Config } from "../../config/schema.js";
import { FleetError, quote } from "../../errors.js";
import { TOKENS_FOLDER } from "../container.js";
import { describe } from "../deployment.js";
import { unfit } from "../problem.js";
import { type Settings, STORE_VARIABLE } from "../settings.js";
import { yamlStream } from "../yaml.js";
import { networkPolicy } from "./network.js";
import {
  configMap,
  disruptionBudget,
  frontService,
  gcJob,
  hostsService,
  namespace,
  sharedClaim,
  statefulSet,
} from "./objects.js";
import { type KubernetesOptions, type Plan, planOf } from "./options.js";
import { autoscaler } from "./scaling.js";

/** A Kubernetes object as `kubectl` takes it. */
export interface Manifest {
  apiVersion: string;
  kind: string;
  metadata: { name: string; namespace?: string };
  [part: string]: unknown;
}

export interface RenderedKubernetes {
  manifests: Manifest[];
  notices: string[];
  /** All of it as one stream, to be applied as it is. */
  yaml: string;
}

interface Entry {
  model: { validate(): void; toJSON(): unknown };
  comment?: string;
}

/** https://kubernetes.io/docs/concepts/configuration/secret/#restriction-names-data */
const SECRET_KEY = /^[-._A-Za-z0-9]{1,200}$/;
const SCALING = `It needs an adapter that offers the metric of Prometheus to Kubernetes (custom.metrics.k8s.io), such as
prometheus-adapter; without one it changes nothing, and the StatefulSet stays at the number that it has.`;
const NO_LIMIT = `No limit of memory: reaching one would end every server in the pod at once (the kernel kills a container's
processes as a group), while recycle.maxMemory replaces single servers that have grown, between turns.`;
const GC_SHARED = `Sessions past their time to live are deleted from the shared folder also while no host is up long enough to do
it; each serve collects every serve.gcInterval beside that.`;
const GC_LOCAL = `There is no CronJob for gc: the sessions are on the pods' own volumes, which no other pod may mount while it
cannot see the processes that use them. Each serve collects its own every serve.gcInterval.`;

/**
 * The fleet of this configuration as Kubernetes objects, each valid by the schemas of Kubernetes' own API.
 *
 * @throws FleetError `FLEET_USAGE_INVALID`, `FLEET_CONFIG_INVALID` for what cannot run there.
 */
export function renderKubernetes(
  loaded: { config: Config; given: Layer },
  options: KubernetesOptions,
): RenderedKubernetes {
  const plan = planOf(describe(loaded, options), options);
  const { deployment } = plan;
  const file = configFile(deployment.settings);
  const shared = deployment.storage === "shared";
  const entries: Entry[] = [
    { model: namespace(plan) },
    { model: configMap(plan, file) },
    ...(shared ? [{ model: sharedClaim(plan) }] : []),
    { model: hostsService(plan) },
    { model: frontService(plan) },
    { model: networkPolicy(plan) },
    { model: statefulSet(plan, file), comment: NO_LIMIT },
    { model: disruptionBudget(plan), ...(shared ? {} : { comment: GC_LOCAL }) },
    ...(deployment.maxReplicas > deployment.replicas ? [{ model: autoscaler(plan), comment: SCALING }] : []),
    ...(shared ? [{ model: gcJob(plan), comment: GC_SHARED }] : []),
  ];
  const made = entries.map(({ model, comment }) => ({ value: validated(model), comment }));
  const notices = [...secretNotices(plan), ...deployment.notices];
  return { manifests: made.map(({ value }) => value), notices, yaml: yamlStream(notices, made) };
}

/**
 * Files of a Secret belong to root, and `fsGroup` lets the group read them: `auth.githubTokenFile` refuses such files, and
 * without `fsGroup` nobody but root could read them. The group has no other member here, so they are read by a command.
 */
function configFile({ file, tokenFiles }: Settings): Record<string, unknown> {
  if (tokenFiles === null) return file;
  if (!SECRET_KEY.test(tokenFiles.name.replaceAll("{user}", "u"))) {
    throw unfit(`auth.githubTokenFile ends in ${quote(tokenFiles.name)}, which no key of a Secret can be called`, [
      "Name the file with letters, digits, -, _ and . alone",
    ]);
  }
  return { ...file, auth: { githubTokenCommand: `cat '${TOKENS_FOLDER}/${tokenFiles.name}'` } };
}

/** Every object passes the schema before anybody sees it. */
export function validated(model: Entry["model"]): Manifest {
  try {
    model.validate();
  } catch (cause) {
    const reason = cause instanceof Error ? cause.message : String(cause);
    throw new FleetError("FLEET_INTERNAL", `A manifest is not valid by Kubernetes' schema: ${reason}`, { cause });
  }
  return JSON.parse(JSON.stringify(model)) as Manifest;
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
    return `The Secret ${secret} has to hold ${keys.join(", ")}. From a file with a line KEY=VALUE for each: ${create}`;
  });
}
