import { isIP } from "node:net";
import { Flags } from "@oclif/core";
import { quote } from "../../base/errors.js";
import { blankFault, textFault, wholeNumberFault } from "../../base/values/text.js";
import { choiceFlag, integerFlag, usage, withRules } from "./flags.js";

/** The rule for the value of a flag. */
interface Kind {
  helpValue: string;
  pattern: RegExp;
  /** The characters that a value may have, for the message. */
  characters: RegExp;
  allowed: string;
  example: string;
}

// At most 40 characters, because Kubernetes appends to the name and the result must fit in a label:
// https://kubernetes.io/docs/concepts/overview/working-with-objects/names/
const NAME: Kind = {
  helpValue: "NAME",
  pattern: /^[a-z](?:[a-z0-9-]{0,38}[a-z0-9])?$/,
  characters: /[a-z0-9-]/,
  allowed: "1 to 40 lower-case letters, digits and hyphens, starting with a letter and not ending with a hyphen",
  example: "copilotfleet",
};
const NAMESPACE: Kind = {
  ...NAME,
  pattern: /^[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?$/,
  allowed: "1 to 63 lower-case letters, digits and hyphens, not starting or ending with a hyphen",
};
/** The name of a Secret or a class. */
const OBJECT: Kind = {
  ...NAME,
  pattern: /^[a-z0-9](?:[a-z0-9.-]{0,198}[a-z0-9])?$/,
  characters: /[a-z0-9.-]/,
  allowed: "lower-case letters, digits, hyphens and dots, not starting or ending with a hyphen or dot",
};
const DNS_NAME: Kind = {
  ...OBJECT,
  pattern: /^(?=.{1,253}$)[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?(?:\.[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?)+$/,
  allowed: "a full name in the DNS, in lower-case letters, such as fleet.example",
  example: "fleet.example",
};
const IMAGE: Kind = {
  helpValue: "IMAGE",
  // Registry and path, with an optional tag and digest: https://pkg.go.dev/github.com/distribution/reference
  pattern:
    /^[A-Za-z0-9](?:[A-Za-z0-9.:-]*[A-Za-z0-9])?(?:\/[a-z0-9]+(?:[._-]+[a-z0-9]+)*)*(?::\w[\w.-]{0,127})?(?:@sha256:[0-9a-f]{64})?$/,
  characters: /\S/,
  allowed: "the name of an image, such as registry.example/copilotfleet:1.0",
  example: "registry.example/copilotfleet:1.0",
};
const SIZE: Kind = {
  helpValue: "SIZE",
  pattern: /^[1-9]\d{0,5}(?:Mi|Gi|Ti)$/,
  characters: /\S/,
  allowed: "a number with Mi, Gi or Ti, such as 10Gi",
  example: "10Gi",
};

/** Makes a flag whose value must be of a kind. */
function checked(name: string, description: string, { helpValue, pattern, characters, allowed, example }: Kind) {
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

const text = (name: string, description: string, kind = OBJECT) => Flags.string(checked(name, description, kind));
const textOr = (usual: string, name: string, description: string, kind = NAMESPACE) =>
  Flags.string({ ...checked(name, description, kind), default: usual });
const number = (name: string, description: string, max: number) => integerFlag(name, description, [1, max]);

function isNetwork(value: string): boolean {
  const [address = "", bits = "", ...rest] = value.split("/");
  const most = isIP(address) === 6 ? 128 : 32;
  return isIP(address) !== 0 && rest.length === 0 && /^(?:0|[1-9]\d{0,2})$/.test(bits) && Number(bits) <= most;
}

/** Flags that Kubernetes and Compose share. */
export const containerFlags = {
  name: textOr("copilotfleet", "name", "name of all objects", NAME),
  image: text("image", "image to run (default: copilotfleet:VERSION with the version of this command)", IMAGE),
  replicas: number("replicas", "number of hosts (default: 1 with the file store, otherwise 2)", 100),
  storage: choiceFlag(
    "kind of storage",
    "where sessions are stored: local, on a volume of each host; shared, in a folder that all hosts mount",
    ["local", "shared"],
  ),
  servers: number(
    "servers",
    "servers to plan for on each host (default: pool.servers if isolation is shared, otherwise 20)",
    1000,
  ),
  sessions: number("sessions", "sessions to plan for in the memory of each host (default: 50)", 100_000),
};

const INGRESS = { dependsOn: ["ingress-host"] };

export const kubernetesFlags = {
  ...containerFlags,
  namespace: textOr("copilotfleet", "namespace", "namespace of all objects"),
  "max-replicas": number(
    "max-replicas",
    "highest number of hosts when scaling by active sessions (default: twice --replicas)",
    200,
  ),
  secret: text("secret", "Secret that holds keys and tokens (default: the value of --name)"),
  "redis-secret": text(
    "redis-secret",
    "Secret whose key REDIS_PASSWORD holds the password of Redis; overrides storeOptions.password",
  ),
  "storage-size": text("storage-size", "size of the volume claims for sessions", SIZE),
  "storage-class": text("storage-class", "storage class of the volume claims (default: the cluster's)"),
  "monitoring-namespace": textOr("monitoring", "monitoring-namespace", "namespace whose pods may read the metrics"),
  "client-namespace": Flags.string({
    ...checked(
      "client-namespace",
      "namespace whose pods may connect to the front door; may be repeated (default: all)",
      NAMESPACE,
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
  "ingress-host": text("ingress-host", "public name of the HTTP API; adds an Ingress, and turns the API on", DNS_NAME),
  "ingress-class": withRules(text("ingress-class", "class of the Ingress (default: the cluster's)"), INGRESS),
  "ingress-secret": withRules(
    text(
      "ingress-secret",
      "Secret with the certificate for --ingress-host (default: the value of --name with -http-tls)",
    ),
    INGRESS,
  ),
  "ingress-namespace": textOr(
    "ingress-nginx",
    "ingress-namespace",
    "namespace of the Ingress controller, which --client-namespace does not shut out",
  ),
  "runtime-class": text("runtime-class", "RuntimeClass of all pods, such as gvisor (default: the cluster's)"),
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

const ACCOUNT: Kind = {
  helpValue: "USER",
  pattern: /^[a-z_][a-z0-9_-]{0,30}$/,
  characters: /[a-z0-9_-]/,
  allowed: "the name of a Linux account (lower-case letters, digits, _ and -), such as copilotfleet",
  example: "copilotfleet",
};
/** systemd gives blanks, quotes, "%" and "$" in a command line a special meaning, so the path must not contain them. */
const PROGRAM: Kind = {
  helpValue: "PATH",
  pattern: /^\/[\w.+/-]+$/,
  characters: /[\w.+/-]/,
  allowed: "a path that starts with / and has only letters, digits and the characters /._+-",
  example: "/usr/local/bin/copilotfleet",
};

export const systemdFlags = {
  command: textOr(PROGRAM.example, "command", "path of the installed command", PROGRAM),
  "run-as": textOr(ACCOUNT.example, "run-as", "account that the units run as", ACCOUNT),
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
