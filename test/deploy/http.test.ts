import { describe, expect, it } from "vitest";
import { configured, find, hostContainer, kubernetes } from "./render.js";

const ECHO = { COPILOTFLEET_PROVIDER_TYPE: "echo" };
const HTTP = { ...ECHO, COPILOTFLEET_SERVE_HTTP: "127.0.0.1:4380", COPILOTFLEET_HTTP_ORIGINS: "https://app.example" };
const TLS = { COPILOTFLEET_SERVE_TLS_CERT: "/etc/a/tls.crt", COPILOTFLEET_SERVE_TLS_KEY: "/etc/a/tls.key" };
const PUBLIC = { "ingress-host": "fleet.example" };

type Manifests = ReturnType<typeof kubernetes>["manifests"];
type Port = { port?: number; containerPort?: number };

const portsOf = (manifests: Manifests, service: string) =>
  (find(manifests, "Service", service).spec as unknown as { ports: Port[] }).ports;
/** The configuration from a host's variables, without those into which Kubernetes fills the host's name. */
const configOf = (manifests: Manifests) => {
  const { env } = hostContainer(manifests);
  const variables = env.flatMap(({ name, value }) =>
    value === undefined || value.includes("$(") ? [] : [[name, value]],
  );
  return configured(Object.fromEntries(variables)).config;
};
const peersOf = (manifests: Manifests, port: number) => {
  const { ingress } = find(manifests, "NetworkPolicy").spec as unknown as {
    ingress: { from: object[]; ports: Port[] }[];
  };
  return ingress.find(({ ports }) => ports.some((open) => open.port === port))?.from;
};
const namespace = (name: string) => ({ namespaceSelector: { matchLabels: { "kubernetes.io/metadata.name": name } } });

describe("the HTTP API in Kubernetes", () => {
  it("deploy kubernetes opens no port for the HTTP API if neither serve.http nor --ingress-host is given", () => {
    const { yaml } = kubernetes(ECHO);
    expect(yaml).not.toMatch(/4380|name: http|COPILOTFLEET_HTTP_ORIGINS|kind: Ingress\n/);
  });

  it("deploy kubernetes exposes the HTTP API in the cluster if serve.http is set, and keeps probes at the metrics port", () => {
    const { manifests, notices } = kubernetes(HTTP);
    expect(portsOf(manifests, "fleet")).toContainEqual({
      name: "http",
      port: 4380,
      targetPort: "http",
      appProtocol: "http",
    });
    expect(portsOf(manifests, "fleet-hosts").map(({ port }) => port)).toEqual([4300, 9464]);
    expect(hostContainer(manifests)).toMatchObject({
      ports: expect.arrayContaining([{ name: "http", containerPort: 4380 }]),
      readinessProbe: { httpGet: { path: "/readyz", port: "metrics" } },
      livenessProbe: { httpGet: { path: "/healthz", port: "metrics" } },
    });
    // serve.http has an address of this machine, which does not apply to the pods.
    expect(JSON.stringify(find(manifests, "ConfigMap"))).not.toContain("4380");
    const { serve, http } = configOf(manifests);
    expect(serve.http).toEqual({ host: "0.0.0.0", port: 4380 });
    expect(http.origins).toEqual([
      "https://app.example",
      "http://fleet:4380",
      "http://fleet.chat:4380",
      "http://fleet.chat.svc:4380",
      "http://fleet.chat.svc.cluster.local:4380",
    ]);
    expect(manifests.map(({ kind }) => kind)).not.toContain("Ingress");
    expect(notices.join()).toContain(
      "The HTTP API is at http://fleet.chat.svc:4380 in the cluster. With --ingress-host",
    );
  });

  it("deploy kubernetes --ingress-host turns the HTTP API on, and routes requests for the public name to it", () => {
    const { manifests, notices } = kubernetes({ ...ECHO, COPILOTFLEET_SERVE_MAX_FRAME: "2mb" }, PUBLIC);
    const { metadata, spec } = find(manifests, "Ingress");
    expect(metadata?.annotations).toEqual({
      "nginx.ingress.kubernetes.io/proxy-body-size": String(2 * 1024 * 1024),
      "nginx.ingress.kubernetes.io/proxy-buffering": "off",
      "nginx.ingress.kubernetes.io/proxy-read-timeout": "3660",
    });
    const backend = { service: { name: "fleet", port: { name: "http" } } };
    expect(spec).toEqual({
      tls: [{ hosts: ["fleet.example"], secretName: "fleet-http-tls" }],
      rules: [{ host: "fleet.example", http: { paths: [{ path: "/", pathType: "Prefix", backend }] } }],
    });
    expect(configOf(manifests).http.origins[0]).toBe("https://fleet.example");
    expect(notices.join()).toContain(
      "kubectl create secret tls fleet-http-tls --namespace chat --cert=FILE --key=FILE",
    );
    const named = kubernetes(ECHO, { ...PUBLIC, "ingress-class": "nginx", "ingress-secret": "wildcard" }).manifests;
    expect(find(named, "Ingress").spec).toMatchObject({ ingressClassName: "nginx", tls: [{ secretName: "wildcard" }] });
  });

  it("the Ingress speaks TLS to the hosts if serve.tls is set", () => {
    const { manifests } = kubernetes({ ...ECHO, ...TLS }, PUBLIC);
    expect(find(manifests, "Ingress").metadata?.annotations).toMatchObject({
      "nginx.ingress.kubernetes.io/backend-protocol": "HTTPS",
    });
    expect(portsOf(manifests, "fleet")).toContainEqual(expect.objectContaining({ name: "http", appProtocol: "https" }));
    expect(configOf(manifests).http.origins).toContain("https://fleet.chat.svc:4380");
  });

  it("the network policy lets the clients' namespaces and the Ingress controller reach the HTTP API", () => {
    const only = { "client-namespace": ["web"] };
    const { manifests } = kubernetes(ECHO, { ...PUBLIC, ...only });
    expect(peersOf(manifests, 4380)).toEqual([namespace("web"), namespace("ingress-nginx")]);
    expect(peersOf(manifests, 4300)).not.toContainEqual(namespace("ingress-nginx"));
    expect(peersOf(kubernetes(HTTP, only).manifests, 4380)).toEqual([namespace("web")]);
    expect(peersOf(kubernetes(HTTP).manifests, 4380)).toEqual([{ namespaceSelector: {} }]);
  });
});
