import { isUtf8 } from "node:buffer";
import { parseObject } from "../../config/values/json.js";
import { scanObject } from "../../runtime/wire/scan.js";
import { Refused } from "./claims.js";

/** The longest token, in bytes. */
const LONGEST_BYTES = 16 * 1024;
const FORM = /^([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]+)\.[A-Za-z0-9_-]*$/;

/** The parts of a token that has not been verified. */
export interface TokenParts {
  header: Readonly<Record<string, unknown>>;
  claims: Readonly<Record<string, unknown>>;
  /** The part of the token that the signature covers. */
  signed: string;
}

/** Reads a token without verifying it. @throws Refused */
export function readParts(token: string): TokenParts {
  if (token.length > LONGEST_BYTES)
    throw new Refused(`it has ${token.length} bytes, which is more than ${LONGEST_BYTES}`);
  const [, header = "", claims = ""] = FORM.exec(token) ?? [];
  if (header === "") throw new Refused("it does not have three parts in base64url");
  return {
    header: decode(header, "header"),
    claims: decode(claims, "content"),
    signed: token.slice(0, token.lastIndexOf(".")),
  };
}

function decode(part: string, what: string): Record<string, unknown> {
  const bytes = Buffer.from(part, "base64url");
  const object = isUtf8(bytes) ? parseObject(bytes.toString("utf8")) : undefined;
  if (object === undefined) throw new Refused(`its ${what} is not a JSON object`);
  // Refuse a name that occurs twice, because another program that reads the token may use the first of the two values.
  // Compare names without escapes, because JSON can spell a name in several ways.
  const names = (scanObject(bytes) ?? []).map(({ key }) => JSON.parse(`"${key}"`) as string);
  const twice = names.find((name, at) => names.indexOf(name) !== at);
  if (twice !== undefined) throw new Refused(`its ${what} has a name twice`);
  return object;
}
