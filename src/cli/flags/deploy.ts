import { isIP } from "node:net";
import { Flags } from "@oclif/core";
import { quote } from "../../base/errors.js";
import { blankFault, textFault, wholeNumberFault } from "../../base/values/text.js";
import { choiceFlag, integerFlag, usage } from "./flags.js";

// At most 40 characters, because Kubernetes appends to the name and the result must fit in a label:
// https://kubernetes.io/docs/concepts/overview/working-with-objects/names/
const NAME = /^[a-z](?:[a-z0-9-]{0,38}[a-z0-9])?$/;
const NAME_ALLOWED =
  "1 to 40 lower-case letters, digits and hyphens, starting with a letter and not ending with a hyphen";
const LABEL = /^[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?$/;
const LABEL_ALLOWED = "1 to 63 lower-case letters, digits and hyphens, not starting or ending with a hyphen";
const SUBDOMAIN = /^[a-z0-9](?:[a-z0-9.-]{0,198}[a-z0-9])?$/;
const SUBDOMAIN_ALLOWED = "lower-case letters, digits, hyphens and dots, not starting or ending with a hyphen or dot";
const DNS_NAME = /^(?=.{1,253}$)[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?(?:\.[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?)+$/;
/** Matches registry and path, with an optional tag and digest: https://pkg.go.dev/github.com/distribution/reference */
const IMAGE =
  /^[A-Za-z0-9](?:[A-Za-z0-9.:-]*[A-Za-z0-9])?(?:\/[a-z0-9]+(?:[._-]+[a-z0-9]+)*)*(?::\w[\w.-]{0,127})?(?:@sha256:[0-9a-f]{64})?$/;
const QUANTITY = /^[1-9]\d{0,5}(?:Mi|Gi|Ti)$/;
const ACCOUNT = /^[a-z_][a-z0-9_-]{0,30}$/;
/** systemd gives blanks, quotes, "%" and "$" in a command line a special meaning, so the path must not contain them. */
const PROGRAM = /^\/[\w.+/-]+$/;

/** Makes a flag whose value matches a pattern. @param characters those that it may have, for the message */
function checked(
  name: string,
  description: string,
  [helpValue, pattern, characters]: readonly [helpValue: string, pattern: RegExp, characters: RegExp],
  allowed: string,
  example: string,
) {
  return {
    description,
    helpValue,
    parse: async (value: string) => {
      if (pattern.test(value)) return value;
      const fault = textFault(value, { characters });
      const given = `--${name} is ${quote(value)}${fault === null ? "" : `, ${fault}`}`;
      throw usage(`${given}. Allowed: ${allowed}`, [`For example, write --${name} ${example}.`]);
    },
  };
}

const namespace = (name: string, description: string, example: string) =>
  checked(name, description, ["NAME", LABEL, /[a-z0-9-]/], `the name of a namespace (${LABEL_ALLOWED})`, example);
/** @param thing the thing that the value names, such as "a Kubernetes Secret" */
const subdomain = (name: string, description: string, thing: string, example: string) =>
  checked(name, description, ["NAME", SUBDOMAIN, /[a-z0-9.-]/], `the name of ${thing} (${SUBDOMAIN_ALLOWED})`, example);
const number = (name: string, description: string, max: number, example: number) =>
  integerFlag(name, description, [1, max], { example });

function isNetwork(value: string): boolean {
  const [address = "", bits = "", ...rest] = value.split("/");
  const most = isIP(address) === 6 ? 128 : 32;
  return isIP(address) !== 0 && rest.length === 0 && /^(?:0|[1-9]\d{0,2})$/.test(bits) && Number(bits) <= most;
}

/** Flags that Kubernetes and Compose share. */
export const containerFlags = {
  name: Flags.string({
    ...checked("name", "name of all objects", ["NAME", NAME, /[a-z0-9-]/], NAME_ALLOWED, "copilotfleet"),
    default: "copilotfleet",
  }),
  image: Flags.string(
    checked(
      "image",
      "image to run (default: copilotfleet:VERSION with the version of this command)",
      ["IMAGE", IMAGE, /\S/],
      "the name of an image, such as registry.example/copilotfleet:1.0",
      "registry.example/copilotfleet:1.0",
    ),
  ),
  replicas: number("replicas", "number of hosts (default: 1 with the file store, otherwise 2)", 100, 2),
  storage: choiceFlag(
    "kind of storage",
    "where sessions are stored: local, on a volume of each host; shared, in a folder that all hosts mount",
    ["local", "shared"],
  ),
  servers: number(
    "servers",
    "servers to plan for on each host (default: pool.servers if isolation is shared, otherwise 20)",
    1000,
    20,
  ),
  sessions: number("sessions", "sessions to plan for in the memory of each host (default: 50)", 100_000, 50),
};

const SECRET = "a Kubernetes Secret";

export const kubernetesFlags = {
  ...containerFlags,
  namespace: Flags.string({
    ...namespace("namespace", "namespace of all objects", "copilotfleet"),
    default: "copilotfleet",
  }),
  "max-replicas": number(
    "max-replicas",
    "highest number of hosts when scaling by active sessions (default: twice --replicas)",
    200,
    4,
  ),
  secret: Flags.string(
    subdomain("secret", "Secret that holds keys and tokens (default: the value of --name)", SECRET, "copilotfleet"),
  ),
  "redis-secret": Flags.string(
    subdomain(
      "redis-secret",
      "Secret whose key REDIS_PASSWORD holds the password of Redis; overrides storeOptions.password",
      `${SECRET} that contains the password of Redis`,
      "copilotfleet-redis",
    ),
  ),
  "storage-size": Flags.string(
    checked(
      "storage-size",
      "size of the volume claims for sessions",
      ["SIZE", QUANTITY, /\S/],
      "a number with Mi, Gi or Ti, such as 10Gi",
      "10Gi",
    ),
  ),
  "storage-class": Flags.string(
    subdomain(
      "storage-class",
      "storage class of the volume claims (default: the cluster's)",
      "a StorageClass of the cluster",
      "standard",
    ),
  ),
  "monitoring-namespace": Flags.string({
    ...namespace("monitoring-namespace", "namespace whose pods may read the metrics", "monitoring"),
    default: "monitoring",
  }),
  "client-namespace": Flags.string({
    ...namespace(
      "client-namespace",
      "namespace whose pods may connect to the front door; may be repeated (default: all)",
      "default",
    ),
    multiple: true,
    default: [],
  }),
  "egress-cidr": Flags.string({
    description: "private network that hosts may reach, in addition to the Internet; may be repeated",
    helpValue: "CIDR",
    multiple: true,
    default: [],
    parse: async (value) => {
      if (isNetwork(value)) return value;
      const allowed = "an IP address, a slash and the number of fixed bits";
      throw usage(`--egress-cidr is ${quote(value)}. Allowed: ${allowed}, such as 10.1.0.0/16`, [
        "For example, write --egress-cidr 10.1.0.0/16.",
      ]);
    },
  }),
  "ingress-host": Flags.string(
    checked(
      "ingress-host",
      "public name of the HTTP API; adds an Ingress, and turns the API on",
      ["NAME", DNS_NAME, /[a-z0-9.-]/],
      "a full name in the DNS, in lower-case letters, such as fleet.example",
      "fleet.example",
    ),
  ),
  "ingress-class": Flags.string({
    ...subdomain(
      "ingress-class",
      "class of the Ingress (default: the cluster's)",
      "an IngressClass of the cluster",
      "nginx",
    ),
    dependsOn: ["ingress-host"],
  }),
  "ingress-secret": Flags.string({
    ...subdomain(
      "ingress-secret",
      "Secret with the certificate for --ingress-host (default: the value of --name with -http-tls)",
      `${SECRET} of the type kubernetes.io/tls`,
      "fleet-tls",
    ),
    dependsOn: ["ingress-host"],
  }),
  "ingress-namespace": Flags.string({
    ...namespace(
      "ingress-namespace",
      "namespace of the Ingress controller, which --client-namespace does not shut out",
      "ingress-nginx",
    ),
    default: "ingress-nginx",
  }),
  "runtime-class": Flags.string(
    subdomain(
      "runtime-class",
      "RuntimeClass of all pods, such as gvisor (default: the cluster's)",
      "a RuntimeClass of the cluster",
      "gvisor",
    ),
  ),
  "egress-port": Flags.custom<number>({
    description: "TCP port that hosts may reach, in addition to those of the model, GitHub and Redis; may be repeated",
    helpValue: "PORT",
    multiple: true,
    parse: async (value) => {
      const port = /^[1-9]\d{0,4}$/.test(value) ? Number(value) : Number.NaN;
      if (port <= 65_535) return port;
      const fault = wholeNumberFault(value, [1, 65_535]) ?? "which is not written in digits alone";
      throw usage(`--egress-port is ${quote(value)}, ${fault}. Allowed: a port from 1 to 65535`, [
        "For example, write --egress-port 8443.",
      ]);
    },
  })(),
};

export const systemdFlags = {
  command: Flags.string({
    ...checked(
      "command",
      "path of the installed command",
      ["PATH", PROGRAM, /[\w.+/-]/],
      "a path that starts with / and has only letters, digits and the characters /._+-, such as /usr/local/bin/copilotfleet",
      "/usr/local/bin/copilotfleet",
    ),
    default: "/usr/local/bin/copilotfleet",
  }),
  "run-as": Flags.string({
    ...checked(
      "run-as",
      "account that the units run as",
      ["USER", ACCOUNT, /[a-z0-9_-]/],
      "the name of a Linux account (lower-case letters, digits, _ and -), such as copilotfleet",
      "copilotfleet",
    ),
    default: "copilotfleet",
  }),
  output: Flags.string({
    description: "write the files below this folder instead of printing them; / writes them where systemd expects them",
    helpValue: "DIR",
    parse: async (value) => {
      if (value.trim() !== "" && !value.includes("\0")) return value;
      const fault = blankFault(value) ?? "which is not a path";
      throw usage(`--output is ${quote(value)}, ${fault}. Allowed: the path of a folder`, [
        "For example, write --output ./deploy.",
      ]);
    },
  }),
};
