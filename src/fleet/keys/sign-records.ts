import { loadConfig } from "../../config/load/load.js";
import { FleetError } from "../../errors.js";
import type { RedisStore } from "../../store/redis/redis-store.js";
import type { SignatureFinding } from "../../store/redis/signatures/signatures.js";
import type { FleetOptions } from "../options.js";
import { checkState, openState } from "../state.js";

export interface SignOptions extends Pick<FleetOptions, "env" | "cwd" | "configFile"> {
  /** Whether to also sign records without a signature of a key that this host has. */
  all: boolean;
  /** With `all`, called with the records before any is signed. May throw to prevent the signing. */
  confirm: (records: readonly SignatureFinding[]) => Promise<void>;
}

export interface SignResult {
  signed: SignatureFinding[];
  /** The records that were left as they are, because no key of this host signed them. */
  refused: SignatureFinding[];
}

/** Signs the records in Redis that an earlier key of this host signed; with `all`, every record. */
export async function signRecords({ all, confirm, ...options }: SignOptions): Promise<SignResult> {
  const { config, stateRoot } = loadConfig({ env: process.env, cwd: process.cwd(), ...options });
  checkState(config, stateRoot);
  if (config.store.kind === "file") {
    throw new FleetError("FLEET_USAGE_INVALID", "The store is in files, and only records in Redis are signed.", {
      suggestions: ["copilotfleet config get store"],
    });
  }
  const store = openState(config, stateRoot) as RedisStore;
  try {
    const { signatures } = store;
    signatures.allowNewKey();
    const found = await signatures.find();
    const isForeign = ({ verdict }: SignatureFinding) => verdict !== "outdated";
    // Stop if this host does not have the key of the other hosts. Otherwise, it would create a new key, and the other
    // hosts could no longer use the records.
    if (!all && signatures.keyId === null && found.some(isForeign)) throw signatures.missingKey();
    const wanted = found.filter((finding) => all || !isForeign(finding));
    if (all && wanted.length > 0) await confirm(wanted);
    return { signed: await signatures.sign(wanted), refused: found.filter((finding) => !wanted.includes(finding)) };
  } finally {
    await store.close();
  }
}
