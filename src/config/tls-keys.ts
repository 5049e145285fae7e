import * as v from "valibot";
import * as rules from "./rules.js";

const file = (name: string) => v.optional(v.nullable(rules.file(`/etc/copilotfleet/${name}`)), null);

/** The certificate of the front door, and the authorities of its clients. */
export const doorTls = v.strictObject({ cert: file("tls.crt"), key: file("tls.key"), clientCa: file("ca.crt") });

/** The certificate that this host shows to other front doors, and the authorities of those doors. */
export const hostTls = v.strictObject({ cert: file("host.crt"), key: file("host.key"), ca: file("ca.crt") });
