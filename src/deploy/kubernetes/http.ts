import type { IIngress } from "kubernetes-models/networking.k8s.io/v1/Ingress";
import { HTTP_PORT } from "../container.js";
import { metadata, type Plan } from "./options.js";

/**
 * How long a proxy should wait for an answer, in seconds. A turn may take an hour by default, and its answer comes at
 * its end, unless the client reads the turn as a stream.
 */
const LONGEST_ANSWER_S = 3_660;

/** The Service's port for the HTTP API, in a list that is empty if the hosts do not serve the API. */
export function httpPorts({ deployment: { http } }: Plan) {
  return http === null
    ? []
    : [{ name: "http", port: HTTP_PORT, targetPort: "http" as const, appProtocol: http.scheme }];
}

/**
 * The origins at which clients reach the HTTP API: the configured origins, the public origin, and the origins of the
 * Service.
 */
export function httpOrigins({ deployment: { http }, names, options }: Plan): string[] {
  if (http === null) return [];
  const service = `${names.main}.${options.namespace}`;
  const inside = [names.main, service, `${service}.svc`, `${service}.svc.cluster.local`];
  return [
    ...http.origins,
    ...(options.ingressHost === undefined ? [] : [`https://${options.ingressHost}`]),
    ...inside.map((name) => `${http.scheme}://${name}:${HTTP_PORT}`),
  ];
}

/** Renders the Ingress that routes requests for the public name to the HTTP API. Its controller terminates TLS. */
export function ingress(plan: Plan, host: string): IIngress {
  const { names, options } = plan;
  const backend = { service: { name: names.main, port: { name: "http" } } };
  return {
    apiVersion: "networking.k8s.io/v1",
    kind: "Ingress",
    metadata: { ...metadata(plan, names.main), annotations: annotations(plan) },
    spec: {
      ...(options.ingressClass === undefined ? {} : { ingressClassName: options.ingressClass }),
      tls: [{ hosts: [host], secretName: names.ingressSecret }],
      rules: [{ host, http: { paths: [{ path: "/", pathType: "Prefix", backend }] } }],
    },
  };
}

/** The annotations of ingress-nginx. Other controllers ignore them. */
function annotations({ deployment: { http } }: Plan): Record<string, string> {
  const given = {
    ...(http?.scheme === "https" ? { "backend-protocol": "HTTPS" } : {}),
    "proxy-body-size": String(http?.longestBody),
    "proxy-buffering": "off",
    "proxy-read-timeout": String(LONGEST_ANSWER_S),
  };
  return Object.fromEntries(
    Object.entries(given).map(([name, value]) => [`nginx.ingress.kubernetes.io/${name}`, value]),
  );
}

/** Sentences for the reader of the manifests. */
export function httpNotices({ deployment: { http }, names, options }: Plan): string[] {
  if (http === null) return [];
  const { ingressHost: host, namespace } = options;
  const inside = `${http.scheme}://${names.main}.${namespace}.svc:${HTTP_PORT}`;
  if (host === undefined)
    return [`The HTTP API is at ${inside} in the cluster. With --ingress-host NAME, there is an Ingress, too.`];
  return [
    `The HTTP API is at https://${host}, and in the cluster at ${inside}.`,
    `The Secret ${names.ingressSecret} must hold the certificate for ${host}: kubectl create secret tls ${names.ingressSecret} --namespace ${namespace} --cert=FILE --key=FILE`,
  ];
}
