import type { INetworkPolicy } from "kubernetes-models/networking.k8s.io/v1/NetworkPolicy";
import { DOOR_PORT, METRICS_PORT } from "../container.js";
import { HOST, metadata, type Plan, selector } from "./options.js";

const DNS_PORT = 53;
const REDIS_PORT = 6379;
/** The label that Kubernetes adds to each namespace. */
const NAMESPACE_LABEL = "kubernetes.io/metadata.name";

const tcp = (port: number) => ({ port, protocol: "TCP" as const });
const ofNamespace = (name: string) => ({ namespaceSelector: { matchLabels: { [NAMESPACE_LABEL]: name } } });

/**
 * Renders the network policy: which clients may reach the pods, and which addresses the pods may reach. Destinations
 * outside of the fleet are ports only. A policy knows addresses and not names, and the addresses of Redis and of a
 * model service change. The kubelet's probes come from the node, and a policy never blocks them.
 */
export function networkPolicy(plan: Plan): INetworkPolicy {
  const { deployment, options, labels } = plan;
  const hosts = { podSelector: { matchLabels: selector(plan, HOST) } };
  // Hosts call each other, and gc calls all hosts.
  const fleet = { podSelector: { matchLabels: labels } };
  const clients =
    options.clientNamespaces.length === 0 ? [{ namespaceSelector: {} }] : options.clientNamespaces.map(ofNamespace);
  const { redis, modelPorts } = deployment;
  const outside = new Set([
    ...(redis === null ? [] : [redis.port ?? REDIS_PORT]),
    ...modelPorts,
    ...options.egressPorts,
  ]);
  return {
    apiVersion: "networking.k8s.io/v1",
    kind: "NetworkPolicy",
    metadata: metadata(plan, plan.names.main),
    spec: {
      podSelector: { matchLabels: labels },
      policyTypes: ["Ingress", "Egress"],
      ingress: [
        { from: [...clients, fleet], ports: [tcp(DOOR_PORT)] },
        { from: [ofNamespace(options.monitoringNamespace)], ports: [tcp(METRICS_PORT)] },
      ],
      egress: [
        { ports: [{ port: DNS_PORT, protocol: "UDP" }, tcp(DNS_PORT)] },
        { to: [hosts], ports: [tcp(DOOR_PORT)] },
        ...(outside.size === 0 ? [] : [{ ports: [...outside].sort((a, b) => a - b).map(tcp) }]),
      ],
    },
  };
}
