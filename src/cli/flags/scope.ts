import { Flags } from "@oclif/core";
import { SCOPES, type Scope } from "../../identity/identity.js";

/** `--scope read --scope admin`, or `--scope read,admin`. */
export const scopeFlag = Flags.custom<Scope, { kind: string }>({
  description: "what the token allows; may be repeated (default: use)",
  helpValue: "SCOPE",
  options: [...SCOPES],
  multiple: true,
  delimiter: ",",
})({ kind: "scope" });
