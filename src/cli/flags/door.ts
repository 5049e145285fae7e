import { resolve } from "node:path";
import { Flags } from "@oclif/core";
import { option, quote } from "../../base/errors.js";
import { isLoopback } from "../../base/values/network.js";
import { addressFault, redactTokens, shellQuote } from "../../base/values/text.js";
import { type Address, parseAddress } from "../../config/rules.js";
import { type PlainSource, resolveToken } from "../../providers/github-token.js";
import type { PeerTls } from "../../runtime/wire/secure.js";
import { readVariable, textFlag, usage, variableFlag, withRules } from "./flags.js";

/** A front door to connect to. */
export interface Door {
  address: Address;
  token: string;
  /** Undefined if the connection is plain TCP. */
  tls: PeerTls | undefined;
  /** The address as the user wrote it. */
  name: string;
  /** The flags that connect to this front door again, for suggestions. */
  flags: string;
}

/** The prefix of the address of a front door with TLS. */
const TLS = "tls://";

export const doorFlags = {
  to: textFlag("to", "address of a front door", "HOST:PORT", (text, name) => {
    address(text, name);
  }),
  "token-env": withRules(variableFlag("environment variable that holds the token for the front door"), {
    dependsOn: ["to"],
  }),
  "token-file": Flags.string({
    description: "file (mode 0600) that holds the token for the front door",
    helpValue: "FILE",
    dependsOn: ["to"],
    exclusive: ["token-env"],
  }),
  ca: fileFlag("authorities of a front door with TLS (default: those that Node.js trusts)", ["to"]),
  cert: fileFlag("certificate to show at the front door", ["to", "key"]),
  key: fileFlag("key of that certificate", ["to", "cert"]),
};

function fileFlag(description: string, dependsOn: string[]) {
  return Flags.string({ description: `file with the ${description}`, helpValue: "FILE", dependsOn });
}

interface DoorFlags {
  to?: string | undefined;
  "token-env"?: string | undefined;
  "token-file"?: string | undefined;
  ca?: string | undefined;
  cert?: string | undefined;
  key?: string | undefined;
}

/** Reads the token for the front door from the variable or file that the user named; undefined without either. */
export async function tokenOfDoor(given: DoorFlags): Promise<string | undefined> {
  const { "token-env": variable, "token-file": file } = given;
  const about = { example: "FLEET_TOKEN", content: "the token for the front door" };
  const source = tokenSourceFromFlags(variable, file, about);
  return source && (await resolveToken(source, { user: null, env: process.env }));
}

/** Reads the files for TLS. Undefined for plain TCP: the address has no `tls://`, and no file for TLS is given. */
async function tlsOfDoor({ to = "", ca, cert, key }: DoorFlags): Promise<PeerTls | undefined> {
  if (!to.startsWith(TLS) && ca === undefined && cert === undefined) return undefined;
  const { readPeerTls } = await import("../../identity/tls/exposure.js");
  const named = (name: string, path: string | undefined) => (path === undefined ? null : { name: option(name), path });
  return readPeerTls({ ca: named("ca", ca), cert: named("cert", cert), key: named("key", key) });
}

/** Returns the front door that the user named, with its token and TLS files read; undefined if the user named none. */
export async function doorFromFlags(given: DoorFlags): Promise<Door | undefined> {
  const { to, "token-env": variable, "token-file": file, ca, cert, key } = given;
  if (to === undefined) return undefined;
  const token = await tokenOfDoor(given);
  if (token === undefined) throw usage("--to needs --token-env VAR or --token-file FILE.");
  const files = { "token-file": file, ca, cert, key };
  const named = Object.entries(files).flatMap(([name, path]) =>
    path === undefined ? [] : `--${name} ${shellQuote(path)}`,
  );
  const flags = [`--to ${to}`, ...(file === undefined ? [`--token-env ${variable}`] : []), ...named].join(" ");
  return { address: address(to, "--to"), token, tls: await tlsOfDoor(given), name: to, flags };
}

/** Warns on standard error if other machines can read the token on its way. */
export function warnOfPlainText({ address: { host }, name, tls }: Door): void {
  if (tls !== undefined || isLoopback({ host })) return;
  const hint = `If the front door has TLS, write --to ${TLS}${name}.`;
  process.stderr.write(`Warning: Others on the network can read the token on its way to ${name}. ${hint}\n`);
}

function address(text: string, name: string): Address {
  const parsed = parseAddress(text.startsWith(TLS) ? text.slice(TLS.length) : text);
  if (parsed !== null && parsed.port !== 0) return parsed;
  const fault = parsed === null ? addressFault(text) : "which has the port 0";
  const allowed = "host:port, such as fleet.example:4300 or [::1]:4300";
  const host = /^[\w.-]+$/.test(text) && redactTokens(text) === text ? text : "fleet.example";
  throw usage(`${name} is ${quote(text)}, ${fault}. Allowed: ${allowed}`, [`For example, write ${name} ${host}:4300.`]);
}

/** The prefixes of GitHub's tokens (docs.github.com, "GitHub's token formats"), and of the fleet's own tokens. */
const TOKEN = /^(gh[pousr]_|github_pat_|cft_)/;

/**
 * Returns the token source that the flags name; undefined if they name none. Refuses the token itself as a value,
 * because every user of the machine can read command lines.
 */
export function tokenSourceFromFlags(
  variable: string | undefined,
  file: string | undefined,
  about: Parameters<typeof readVariable>[2],
): PlainSource | undefined {
  if (TOKEN.test(variable ?? file ?? "")) {
    throw usage(
      "--token-env takes the name of a variable and --token-file the path of a file, not the token itself. Revoke " +
        "the token, because others can read it on the command line.",
    );
  }
  if (file !== undefined) {
    if (file === "") throw usage('--token-file "" is empty. Give the path of a file.');
    return { from: "file", path: resolve(file) };
  }
  if (variable === undefined) return undefined;
  // Check the variable here, so that the error names the flag.
  readVariable("--token-env", variable, about);
  return { from: "env", name: variable };
}
