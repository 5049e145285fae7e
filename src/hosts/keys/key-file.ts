import { createPrivateKey, createPublicKey, generateKeyPairSync, type KeyObject, randomBytes } from "node:crypto";
import { linkSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { readValueFile } from "../../config/load/value-file.js";
import { FleetError, quote, systemCode } from "../../errors.js";
import { mediumError, readIfThere } from "../../store/file/failures.js";
import { ensureStateFolder } from "../../store/file/state-folder.js";

export function hostKeyPath(stateRoot: string): string {
  return join(stateRoot, "host-key");
}

/** Returns the key of this host, and creates it on first use. `x` is the public key in base64url. */
export function ensureHostKey(stateRoot: string): { key: KeyObject; x: string } {
  const path = hostKeyPath(stateRoot);
  if (readIfThere(path, () => readFileSync(path)) === undefined) make(stateRoot, path);
  try {
    const key = createPrivateKey(readValueFile(path, "host-key"));
    const { x } = createPublicKey(key).export({ format: "jwk" });
    if (key.asymmetricKeyType === "ed25519" && x !== undefined) return { key, x };
  } catch (error) {
    if (error instanceof FleetError) throw error;
    throw unreadable(path, error);
  }
  throw unreadable(path, undefined);
}

function make(stateRoot: string, path: string): void {
  const { privateKey } = generateKeyPairSync("ed25519");
  const temp = `${path}.${randomBytes(4).toString("hex")}.tmp`;
  try {
    ensureStateFolder(stateRoot);
    writeFileSync(temp, privateKey.export({ type: "pkcs8", format: "pem" }), { mode: 0o600, flag: "wx" });
    linkSync(temp, path);
  } catch (error) {
    // If another process created the key first, use that key.
    if (systemCode(error) !== "EEXIST") throw mediumError("write", path, error);
  } finally {
    rmSync(temp, { force: true });
  }
}

function unreadable(path: string, cause: unknown): FleetError {
  return new FleetError("FLEET_STATE_CORRUPT", `${quote(path)} is not an Ed25519 key.`, {
    suggestions: ["Restore the file from a backup, or move it away and give the others the new key."],
    cause,
  });
}
