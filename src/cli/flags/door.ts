import { Flags } from "@oclif/core";
import { type Address, parseAddress } from "../../config/rules.js";
import { shellQuote } from "../../config/values/text.js";
import { addressFault } from "../../config/values/text-fault.js";
import { quote } from "../../errors.js";
import { resolveToken } from "../../models/github-token.js";
import { textFlag, usage, variableFlag } from "./flags.js";
import { namingTokenFlag, tokenSourceFromFlags } from "./token.js";

/** A front door to connect to. */
export interface Door {
  address: Address;
  token: string;
  /** The address as the user wrote it. */
  name: string;
  /** The flags that name this front door and its token. */
  flags: string;
}

const TOKEN_VARIABLE = "FLEET_TOKEN";

export const doorFlags = {
  to: textFlag("to", "address of a front door", "HOST:PORT", (text, name) => {
    address(text, name);
  }),
  "token-env": variableFlag("environment variable that holds the token for the front door", TOKEN_VARIABLE),
  "token-file": Flags.string({
    description: "file (mode 0600) that holds the token for the front door",
    helpValue: "FILE",
  }),
};

interface DoorFlags {
  to?: string | undefined;
  "token-env"?: string | undefined;
  "token-file"?: string | undefined;
}

/** Reads the token from its source. Returns undefined if the user named no front door. */
export async function doorFromFlags(given: DoorFlags): Promise<Door | undefined> {
  const { to, "token-env": variable, "token-file": file } = given;
  const source = tokenSourceFromFlags(variable, file, TOKEN_VARIABLE);
  if (to === undefined && source === undefined) return undefined;
  if (to === undefined) throw usage("--token-env and --token-file need --to HOST:PORT.");
  if (source === undefined) throw usage("--to needs --token-env VAR or --token-file FILE.");
  const token = await namingTokenFlag(variable, resolveToken(source, { user: null, env: process.env }), {
    example: TOKEN_VARIABLE,
    content: "the token for the front door",
  });
  const tokenFlag = file === undefined ? `--token-env ${variable}` : `--token-file ${shellQuote(file)}`;
  return { address: address(to, "--to"), token, name: to, flags: `--to ${to} ${tokenFlag}` };
}

function address(text: string, name: string): Address {
  const parsed = parseAddress(text);
  if (parsed !== null && parsed.port !== 0) return parsed;
  const fault = parsed === null ? addressFault(text) : "which has the port 0";
  const allowed = "host:port, such as fleet.example:4300 or [::1]:4300";
  const host = /^[\w.-]+$/.test(text) ? text : "fleet.example";
  throw usage(`${name} is ${quote(text)}, ${fault}. Allowed: ${allowed}`, [`For example, write ${name} ${host}:4300.`]);
}
