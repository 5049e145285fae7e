import { Flags } from "@oclif/core";
import { quote } from "../../errors.js";
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
/** Registry, path, and a tag or digest: https://pkg.go.dev/github.com/distribution/reference */
const IMAGE =
  /^[A-Za-z0-9](?:[A-Za-z0-9.:-]*[A-Za-z0-9])?(?:\/[a-z0-9]+(?:[._-]+[a-z0-9]+)*)*(?::\w[\w.-]{0,127})?(?:@sha256:[0-9a-f]{64})?$/;
const QUANTITY = /^[1-9]\d{0,5}(?:Mi|Gi|Ti)$/;
const ACCOUNT = /^[a-z_][a-z0-9_-]{0,30}$/;
/** systemd gives blanks, quotes, "%" and "$" in a command line a special meaning, so the path must not contain them. */
const PROGRAM = /^\/[\w.+/-]+$/;

function checked(name: string, description: string, helpValue: string, pattern: RegExp, allowed: string) {
  return {
    description,
    helpValue,
    parse: async (value: string) => {
      if (pattern.test(value)) return value;
      throw usage(`--${name} is ${quote(value)}. Allowed: ${allowed}`, [
        `Write a value such as --${name} ${/such as (\S+)$/.exec(allowed)?.[1] ?? "copilotfleet"}.`,
      ]);
    },
  };
}

const label = (name: string, description: string) => checked(name, description, "NAME", LABEL, LABEL_ALLOWED);
const subdomain = (name: string, description: string) =>
  checked(name, description, "NAME", SUBDOMAIN, SUBDOMAIN_ALLOWED);
const number = (name: string, description: string, max: number) => integerFlag(name, description, [1, max]);

/** Flags that Kubernetes and Compose share. */
export const containerFlags = {
  name: Flags.string({
    ...checked("name", "name of all objects", "NAME", NAME, NAME_ALLOWED),
    default: "copilotfleet",
  }),
  image: Flags.string(
    checked(
      "image",
      "image to run (default: copilotfleet:VERSION with the version of this command)",
      "IMAGE",
      IMAGE,
      "the name of an image, such as registry/path:tag",
    ),
  ),
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

export const kubernetesFlags = {
  ...containerFlags,
  namespace: Flags.string({ ...label("namespace", "namespace of all objects"), default: "copilotfleet" }),
  "max-replicas": number(
    "max-replicas",
    "highest number of hosts when scaling by active sessions (default: twice --replicas)",
    200,
  ),
  secret: Flags.string(subdomain("secret", "Secret that holds keys and tokens (default: the value of --name)")),
  "redis-secret": Flags.string(
    subdomain("redis-secret", "Secret whose key COPILOTFLEET_STORE holds the Redis URL; overrides store"),
  ),
  "storage-size": Flags.string(
    checked(
      "storage-size",
      "size of the volume claims for sessions",
      "SIZE",
      QUANTITY,
      "a number with Mi, Gi or Ti, such as 10Gi",
    ),
  ),
  "storage-class": Flags.string(
    subdomain("storage-class", "storage class of the volume claims (default: the cluster's)"),
  ),
  "monitoring-namespace": Flags.string({
    ...label("monitoring-namespace", "namespace whose pods may read the metrics"),
    default: "monitoring",
  }),
  "client-namespace": Flags.string({
    ...label("client-namespace", "namespace whose pods may connect to the front door; may be repeated (default: all)"),
    multiple: true,
    default: [],
  }),
  "egress-port": Flags.custom<number>({
    description: "TCP port that hosts may reach, in addition to those of the model, GitHub and Redis; may be repeated",
    helpValue: "PORT",
    multiple: true,
    parse: async (value) => {
      const port = /^[1-9]\d{0,4}$/.test(value) ? Number(value) : Number.NaN;
      if (port <= 65_535) return port;
      throw usage(`--egress-port is ${quote(value)}. Allowed: a port from 1 to 65535`, [
        "Write a port, such as --egress-port 8443.",
      ]);
    },
  })(),
};

export const systemdFlags = {
  command: Flags.string({
    ...checked(
      "command",
      "path of the installed command",
      "PATH",
      PROGRAM,
      "a path that starts with / and has only letters, digits and the characters /._+-, such as /usr/local/bin/copilotfleet",
    ),
    default: "/usr/local/bin/copilotfleet",
  }),
  "run-as": Flags.string({
    ...checked(
      "run-as",
      "account that the units run as",
      "USER",
      ACCOUNT,
      "the name of a Linux account (lower-case letters, digits, _ and -), such as copilotfleet",
    ),
    default: "copilotfleet",
  }),
  output: Flags.string({
    description: "write the files below this folder instead of printing them; / writes them where systemd expects them",
    helpValue: "DIR",
    parse: async (value) => {
      if (value.trim() !== "" && !value.includes("\0")) return value;
      throw usage(`--output is ${quote(value)}. Allowed: the path of a folder`, [
        "Write a folder, such as --output ./deploy.",
      ]);
    },
  }),
};
