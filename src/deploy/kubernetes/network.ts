import { isIP } from "node:net";
import type { INetworkPolicy } from "kubernetes-models/networking.k8s.io/v1/NetworkPolicy";
import { DOOR_PORT, HTTP_PORT, METRICS_PORT } from "../container.js";
import type { Service } from "../deployment.js";
import { HOST, metadata, type Plan, selector } from "./options.js";

const DNS_PORT = 53;
/** The address of the DNS cache on each node, in clusters that have one (NodeLocal DNSCache). */
const NODE_DNS = "169.254.20.10/32";
/** The label that Kubernetes adds to each namespace. */
const NAMESPACE_LABEL = "kubernetes.io/metadata.name";

/**
 * The addresses at which clouds give out the credentials of a machine. The first range contains those of most clouds.
 */
const METADATA = ["169.254.0.0/16", "168.63.129.16/32", "100.100.100.200/32"];
const METADATA_6 = ["fe80::/10", "fd00:ec2::254/128", "fd20:ce::254/128"];
/** Addresses outside of the public Internet: private networks, which include the nodes and the API of Kubernetes. */
const PRIVATE = `
  0.0.0.0/8 10.0.0.0/8 100.64.0.0/10 127.0.0.0/8 168.63.129.16/32 169.254.0.0/16 172.16.0.0/12 192.0.0.0/24
  192.168.0.0/16 198.18.0.0/15 224.0.0.0/4 240.0.0.0/4`;
const PRIVATE_6 = "::/127 64:ff9b:1::/48 fc00::/7 fe80::/10 ff00::/8";

const words = (text: string) => text.trim().split(/\s+/);
const anyBut = (four: readonly string[], six: readonly string[]) => [
  { ipBlock: { cidr: "0.0.0.0/0", except: [...four] } },
  { ipBlock: { cidr: "::/0", except: [...six] } },
];
const INTERNET = anyBut(words(PRIVATE), words(PRIVATE_6));
const ALL_BUT_METADATA = anyBut(METADATA, METADATA_6);

const tcp = (port: number) => ({ port, protocol: "TCP" as const });
const ofNamespace = (name: string) => ({ namespaceSelector: { matchLabels: { [NAMESPACE_LABEL]: name } } });
const ofAddress = (address: string) => ({ ipBlock: { cidr: `${address}/${isIP(address) === 6 ? 128 : 32}` } });

/**
 * Renders the policy that lets hosts reach the DNS of the cluster, each other, and the services that the configuration
 * names.
 *
 * A policy cannot contain host names, so for a service whose name is outside of the cluster, it allows every address of
 * the Internet. It allows private addresses only for Redis (at its port), for services that the configuration names by
 * address, and for the networks of `--egress-cidr`. A policy never blocks the kubelet's probes, which come from the
 * node.
 */
export function networkPolicy(plan: Plan): INetworkPolicy {
  const { deployment, options, labels } = plan;
  const hosts = { podSelector: { matchLabels: selector(plan, HOST) } };
  // Select all pods of the fleet, because hosts call each other, and the gc pod calls all hosts.
  const fleet = { podSelector: { matchLabels: labels } };
  const ofClients = (more: readonly string[]) =>
    options.clientNamespaces.length === 0
      ? [{ namespaceSelector: {} }]
      : [...new Set([...options.clientNamespaces, ...more])].map(ofNamespace);
  const proxies = options.ingressHost === undefined ? [] : [options.ingressNamespace];
  return {
    apiVersion: "networking.k8s.io/v1",
    kind: "NetworkPolicy",
    metadata: metadata(plan, plan.names.main),
    spec: {
      podSelector: { matchLabels: labels },
      policyTypes: ["Ingress", "Egress"],
      ingress: [
        { from: [...ofClients([]), fleet], ports: [tcp(DOOR_PORT)] },
        ...(deployment.http === null ? [] : [{ from: ofClients(proxies), ports: [tcp(HTTP_PORT)] }]),
        { from: [ofNamespace(options.monitoringNamespace)], ports: [tcp(METRICS_PORT)] },
      ],
      egress: [
        {
          to: [{ namespaceSelector: {} }, { ipBlock: { cidr: NODE_DNS } }],
          ports: [{ port: DNS_PORT, protocol: "UDP" }, tcp(DNS_PORT)],
        },
        { to: [hosts], ports: [tcp(DOOR_PORT)] },
        ...(deployment.redis === null
          ? []
          : [{ to: redisPeers(deployment.redis), ports: [tcp(deployment.redis.port)] }]),
        ...modelRules(plan),
      ],
    },
  };
}

/**
 * The addresses at which hosts may reach Redis. If the host of Redis is unknown or is a name outside of the cluster,
 * its address may be private. So all addresses are then allowed, except those of cloud metadata. This is acceptable,
 * because Redis has a password.
 */
function redisPeers({ host }: Service) {
  return host === null
    ? ALL_BUT_METADATA
    : (inCluster(host) ?? (isIP(host) === 0 ? ALL_BUT_METADATA : [ofAddress(host)]));
}

/** The rules for the model, GitHub, identity providers, and the ports and networks in the options. */
function modelRules({ deployment, options: { egressPorts, egressCidrs } }: Plan) {
  const networks = egressCidrs.map((cidr) => ({ ipBlock: { cidr } }));
  const outside = new Set(egressPorts);
  const rules = [];
  for (const { host, port } of deployment.services) {
    const peers = host === null ? null : isIP(host) === 0 ? inCluster(host) : [ofAddress(host)];
    if (peers === null) outside.add(port);
    // A policy applies to the pod's port, which may differ from its Service's port. So allow the ports of
    // --egress-port, too.
    else rules.push({ to: peers, ports: [...new Set([port, ...egressPorts])].map(tcp) });
  }
  if (outside.size === 0) return rules;
  return [...rules, { to: [...INTERNET, ...networks], ports: [...outside].sort((a, b) => a - b).map(tcp) }];
}

/**
 * The pods that may be behind the name of a Service: all pods of its namespace. Null for a name outside of the cluster.
 */
function inCluster(host: string) {
  if (!host.includes(".")) return [{ podSelector: {} }];
  const [, namespace] = /^[^.]+\.([^.]+)\.svc(?:\.|$)/.exec(host) ?? [];
  return namespace === undefined ? null : [ofNamespace(namespace)];
}
