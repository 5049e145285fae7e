import type { Deployment, DeployOptions } from "../deployment.js";

/** The options of `deploy kubernetes` in addition to those that the renderers share. */
export interface KubernetesOptions extends DeployOptions {
  namespace: string;
  /** The Secret with the fleet's secrets and the variables that servers get. Default: the deployment's name. */
  secret?: string | undefined;
  /** The Secret whose key `COPILOTFLEET_STORE` is the Redis URL. Default: the same as `secret`. */
  redisSecret?: string | undefined;
  /** The size of each PersistentVolumeClaim for sessions. Default: enough for the planned servers and sessions. */
  storageSize?: string | undefined;
  storageClass?: string | undefined;
  /** The namespace whose pods may read the metrics. */
  monitoringNamespace: string;
  /** The namespaces whose pods may connect to the front door. If the list is empty, all pods may connect. */
  clientNamespaces: readonly string[];
  /** Additional TCP ports that hosts may reach. */
  egressPorts: readonly number[];
  /**
   * Private networks that hosts may reach, at the ports in `egressPorts` and those of the model, GitHub and identity
   * providers.
   */
  egressCidrs: readonly string[];
  /** The public name of the HTTP API. If it is set, an Ingress routes requests for this name to the API. */
  ingressHost?: string | undefined;
  /** The IngressClass. Default: the cluster's. */
  ingressClass?: string | undefined;
  /** The Secret with the certificate for `ingressHost`. Default: the deployment's name with "-http-tls". */
  ingressSecret?: string | undefined;
  /** The namespace of the Ingress controller, whose pods forward the requests. */
  ingressNamespace: string;
  /** The RuntimeClass of all pods. Default: the cluster's. */
  runtimeClass?: string | undefined;
}

/** The input from which all objects are rendered. */
export type Plan = ReturnType<typeof planOf>;

export function planOf(deployment: Deployment, options: KubernetesOptions) {
  const { name } = deployment;
  const secret = options.secret ?? name;
  return {
    deployment,
    options,
    /** The names of objects that other objects refer to. */
    names: {
      /** The name of the StatefulSet, the Service for clients and most other objects. */
      main: name,
      /** The headless Service. Each pod has its name in the domain of this Service. */
      hosts: `${name}-hosts`,
      config: `${name}-config`,
      secret,
      redisSecret: options.redisSecret ?? secret,
      /** The Secret with a token file for each user. */
      userTokens: `${secret}-user-tokens`,
      /** The PersistentVolumeClaim that all hosts mount. */
      shared: `${name}-shared`,
      gc: `${name}-gc`,
      /** The Secret with the certificate of the Ingress. */
      ingressSecret: options.ingressSecret ?? `${name}-http-tls`,
    },
    labels: { "app.kubernetes.io/name": "copilotfleet", "app.kubernetes.io/instance": name },
  };
}

export function metadata({ options, labels }: Plan, name: string) {
  return { name, namespace: options.namespace, labels };
}

export const HOST = { "app.kubernetes.io/component": "host" };
export const GC = { "app.kubernetes.io/component": "gc" };

export function selector({ labels }: Plan, component: Record<string, string>): Record<string, string> {
  return { ...labels, ...component };
}
