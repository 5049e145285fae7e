import type { Deployment, DeployOptions } from "../deployment.js";

/** What `deploy kubernetes` is told beside what the renderers share. */
export interface KubernetesOptions extends DeployOptions {
  namespace: string;
  /** The Secret with all secret variables; default: the deployment's name. */
  secret?: string | undefined;
  /** The Secret whose key `COPILOTFLEET_STORE` is the Redis URL; default: the same. */
  redisSecret?: string | undefined;
  /** Of the large claims; default: what the capacity asks for. */
  storageSize?: string | undefined;
  storageClass?: string | undefined;
  /** From whose pods the metrics may be read. */
  monitoringNamespace: string;
  /** From whose pods clients may come; none: from all. */
  clientNamespaces: readonly string[];
  /** Further TCP ports that hosts may reach. */
  egressPorts: readonly number[];
}

/** What every object is made from. */
export interface Plan {
  deployment: Deployment;
  options: KubernetesOptions;
  /** Names of the objects that others refer to. */
  names: Names;
  labels: Record<string, string>;
}

interface Names {
  /** StatefulSet, front Service and most others. */
  main: string;
  /** The headless Service, in whose domain each pod has its name. */
  hosts: string;
  config: string;
  secret: string;
  redisSecret: string;
  /** The Secret with one variable or file a user. */
  userTokens: string;
  /** The claim that all hosts mount. */
  shared: string;
  gc: string;
}

export function planOf(deployment: Deployment, options: KubernetesOptions): Plan {
  const { name } = deployment;
  const secret = options.secret ?? name;
  return {
    deployment,
    options,
    names: {
      main: name,
      hosts: `${name}-hosts`,
      config: `${name}-config`,
      secret,
      redisSecret: options.redisSecret ?? secret,
      userTokens: `${secret}-user-tokens`,
      shared: `${name}-shared`,
      gc: `${name}-gc`,
    },
    labels: { "app.kubernetes.io/name": "copilotfleet", "app.kubernetes.io/instance": name },
  };
}

/** Name, namespace and labels of an object. */
export function metadata({ options, labels }: Plan, name: string) {
  return { name, namespace: options.namespace, labels };
}

export const HOST = { "app.kubernetes.io/component": "host" };
export const GC = { "app.kubernetes.io/component": "gc" };

/** The labels that select the pods of a component. */
export function selector({ labels }: Plan, component: Record<string, string>): Record<string, string> {
  return { ...labels, ...component };
}
