import { Flags } from "@oclif/core";
import { type Address, parseAddress } from "../../config/rules.js";
import { isLoopback } from "../../config/values/redis-url.js";
import { redactTokens, shellQuote } from "../../config/values/text.js";
import { addressFault } from "../../config/values/text-fault.js";
import { option, quote } from "../../errors.js";
import { resolveToken } from "../../models/github-token.js";
import type { PeerTls } from "../../runtime/wire/secure.js";
import { textFlag, usage, variableFlag } from "./flags.js";
import { namingTokenFlag, tokenSourceFromFlags } from "./token.js";

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

const TOKEN_VARIABLE = "FLEET_TOKEN";
/** The prefix of the address of a front door with TLS. */
const TLS = "tls://";

export const doorFlags = {
  to: textFlag("to", "address of a front door", "HOST:PORT", (text, name) => {
    address(text, name);
  }),
  "token-env": variableFlag("environment variable that holds the token for the front door", TOKEN_VARIABLE),
  "token-file": Flags.string({
    description: "file (mode 0600) that holds the token for the front door",
    helpValue: "FILE",
  }),
  ca: fileFlag("authorities of a front door with TLS (default: those that Node.js trusts)"),
  cert: fileFlag("certificate to show at the front door", ["key"]),
  key: fileFlag("key of that certificate", ["cert"]),
};

function fileFlag(description: string, dependsOn: string[] = []) {
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
  const source = tokenSourceFromFlags(variable, file, TOKEN_VARIABLE);
  if (source === undefined) return undefined;
  return await namingTokenFlag(variable, resolveToken(source, { user: null, env: process.env }), {
    example: TOKEN_VARIABLE,
    content: "the token for the front door",
  });
}

/** Reads the files for TLS. Undefined for plain TCP: the address has no `tls://`, and no file for TLS is given. */
async function tlsOfDoor({ to = "", ca, cert, key }: DoorFlags): Promise<PeerTls | undefined> {
  if (!to.startsWith(TLS) && ca === undefined && cert === undefined) return undefined;
  const { readPeerTls } = await import("../../identity/tls/peer.js");
  const named = (name: string, path: string | undefined) => (path === undefined ? null : { name: option(name), path });
  return readPeerTls({ ca: named("ca", ca), cert: named("cert", cert), key: named("key", key) });
}

/** Returns the front door that the user named, with its token and TLS files read; undefined if the user named none. */
export async function doorFromFlags(given: DoorFlags): Promise<Door | undefined> {
  const { to, "token-env": variable, "token-file": file, ca, cert, key } = given;
  const source = tokenSourceFromFlags(variable, file, TOKEN_VARIABLE);
  const needsDoor = [source, ca, cert].some((part) => part !== undefined);
  if (to === undefined && !needsDoor) return undefined;
  if (to === undefined) throw usage("--token-env, --token-file, --ca, --cert and --key need --to HOST:PORT.");
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
