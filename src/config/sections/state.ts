import * as v from "valibot";
import * as rules from "../rules.js";
import { hostTls } from "../tls-keys.js";

export const storeOptions = v.strictObject({
  // The file with the key that signs the records in Redis. If null, the file `store-key` in the state folder.
  keyFile: v.optional(v.nullable(rules.file()), null),
});

/** Settings of this host, for a fleet of several hosts that share a Redis. */
export const host = v.pipe(
  v.strictObject({
    // If null, the host keeps its previous name or takes the machine's name.
    name: v.optional(v.nullable(rules.hostName()), null),
    // The address at which other hosts reach the front door of this host. If null, the address at which the door
    // listens.
    advertise: v.optional(v.nullable(rules.advertised()), null),
    // The certificate with which this host identifies itself to other front doors, and the authorities with which it
    // verifies theirs. If `ca` is null, it trusts the authorities that Node.js trusts.
    tls: v.optional(hostTls, {}),
    // How long after this host's last heartbeat the other hosts consider it dead, and take over its users and sessions.
    ttl: v.optional(rules.hostTtl(), "15s"),
  }),
  v.transform(({ ttl, ...rest }) => ({ ...rest, ttlMs: ttl })),
);

export const storage = v.strictObject({
  // A folder that all hosts mount, for the state of sessions. If null, each host stores the state on its own disk.
  shared: v.optional(v.nullable(rules.folder()), null),
});
