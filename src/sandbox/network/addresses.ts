import { BlockList, isIP } from "node:net";
import { networkInterfaces } from "node:os";
import { allowsName, type NetworkRule, readNetworkRule } from "../../base/values/network.js";

/**
 * Addresses that a host name must not lead to, unless an entry for addresses in `sandbox.allow` contains the address:
 * this machine, private networks, link-local, shared (CGNAT), multicast, reserved and documentation addresses, and IPv6
 * that contains an IPv4 address (mapped, NAT64, Teredo, 6to4). Only `2000::/3` of IPv6 is public. Source: the
 * special-purpose address registries of IANA.
 */
const BLOCKED = `0.0.0.0/8 10.0.0.0/8 100.64.0.0/10 127.0.0.0/8 169.254.0.0/16 172.16.0.0/12 192.0.0.0/24 192.0.2.0/24
  192.88.99.0/24 192.168.0.0/16 198.18.0.0/15 198.51.100.0/24 203.0.113.0/24 224.0.0.0/3
  ::/3 2001::/23 2001:db8::/32 2002::/16 3fff::/20 4000::/2 8000::/1`
  .split(/\s+/)
  .map((text) => {
    const [address = "", prefix] = text.split("/");
    return { address, prefix: Number(prefix) };
  });

/** The addresses at which clouds give credentials to every process of a machine. Azure's is a public address. */
const METADATA = "169.254.169.254 169.254.170.2 100.100.100.200 168.63.129.16 192.0.0.192 fd00:ec2::254 fd20:ce::254";

/**
 * A set of addresses. IPv4 and IPv6 have separate lists, because a `BlockList` treats an IPv4 address and the IPv6
 * address that contains it as the same address.
 */
class AddressSet {
  readonly #v4 = new BlockList();
  readonly #v6 = new BlockList();

  add(address: string, prefix: number): this {
    if (isIP(address) === 6) this.#v6.addSubnet(address, prefix, "ipv6");
    else this.#v4.addSubnet(address, prefix, "ipv4");
    return this;
  }

  has(address: string): boolean {
    const version = isIP(address);
    // An address with a zone ("%eth0") is link-local, and is in no set.
    if (version === 0 || address.includes("%")) return false;
    return version === 6 ? this.#v6.check(address, "ipv6") : this.#v4.check(address, "ipv4");
  }
}

const metadata = new AddressSet();
for (const address of METADATA.split(" ")) metadata.add(address, isIP(address) === 6 ? 128 : 32);
const blocked = new AddressSet();
for (const { address, prefix } of BLOCKED) blocked.add(address, prefix);
const blockedRanges = BLOCKED.map(({ address, prefix }) => ({ prefix, set: new AddressSet().add(address, prefix) }));

const OWN_VALID_MS = 5_000;
let own = { set: new AddressSet(), untilMs: 0 };

/**
 * The addresses that are blocked on every machine, in the form that `native/network.c` reads. The bridge finds the
 * machine's own addresses itself.
 */
export function blockedList(): string {
  const alone = METADATA.split(" ").map((address) => `${digitsOf(address)}/${isIP(address) === 6 ? 128 : 32}`);
  return [...BLOCKED.map(({ address, prefix }) => `${digitsOf(address)}/${prefix}`), ...alone].join(",");
}

/** The bytes of an address as hexadecimal digits. */
function digitsOf(address: string): string {
  if (isIP(address) === 4) return Buffer.from(address.split(".").map(Number)).toString("hex");
  const [head = "", tail = ""] = address.split("::").map((part) => {
    const groups = part === "" ? [] : part.split(":");
    return groups.map((group) => group.padStart(4, "0")).join("");
  });
  return head.padEnd(32 - tail.length, "0") + tail;
}

/**
 * Whether this is an address of this machine. The machine's services may trust connections from such an address.
 * Loopback addresses that are in `BLOCKED` do not count, because they are blocked anyway.
 */
function isOwn(address: string): boolean {
  if (performance.now() >= own.untilMs) {
    own = { set: new AddressSet(), untilMs: performance.now() + OWN_VALID_MS };
    for (const { address, internal } of Object.values(networkInterfaces()).flatMap((all) => all ?? []))
      if (!internal || !blocked.has(address)) own.set.add(address, isIP(address) === 6 ? 128 : 32);
  }
  return own.set.has(address);
}

/**
 * Whether this address is blocked: a server reaches it only if an entry of `sandbox.allow` lists the address or its
 * range, because an entry for a host name does not suffice. Also true for a text that is not an address in its usual
 * form.
 */
export function isBlocked(address: string): boolean {
  return isIP(address) === 0 || address.includes("%") || blocked.has(address) || needsOwnEntry(address);
}

const needsOwnEntry = (address: string) => metadata.has(address) || isOwn(address);

type AddressRule = Extract<NetworkRule, { address: string }>;

/** The rules of one server: the entries of `sandbox.allow` with which it started. */
export class ServerRules {
  readonly #names: NetworkRule[];
  readonly #ranges: { rule: AddressRule; set: AddressSet; isBlocked: boolean }[];

  constructor(allow: readonly string[]) {
    const rules = allow.map(readNetworkRule).filter((rule) => rule !== null);
    this.#names = rules.filter((rule) => "name" in rule);
    this.#ranges = rules.flatMap((rule) => {
      if (!("address" in rule)) return [];
      const set = new AddressSet().add(rule.address, rule.prefix);
      return [{ rule, set, isBlocked: isWithinBlocked(rule) }];
    });
  }

  /** @param name as {@link asciiName} returns it */
  allowsName(name: string, port: number): boolean {
    return this.#names.some((rule) => allowsName(rule, name, port));
  }

  /**
   * Whether an entry for addresses allows this address. A blocked address needs an entry that lies within one blocked
   * range, such as `10.0.0.0/8`; a wider entry allows only public addresses. A metadata address, or an address of this
   * machine, needs an entry for exactly this address.
   */
  allowsAddress(address: string, port: number): boolean {
    const isPublic = !isBlocked(address);
    return this.#ranges.some(({ rule, set, ...range }) => {
      if ((rule.port !== null && rule.port !== port) || !set.has(address)) return false;
      const isExact = rule.prefix === (isIP(address) === 6 ? 128 : 32);
      return isPublic || isExact || (range.isBlocked && !needsOwnEntry(address));
    });
  }

  /** Whether a server may connect to this address if an allowed name leads to it. */
  mayLeadTo(address: string, port: number): boolean {
    return !isBlocked(address) || this.allowsAddress(address, port);
  }
}

function isWithinBlocked(rule: AddressRule): boolean {
  return blockedRanges.some(({ prefix, set }) => rule.prefix >= prefix && set.has(rule.address));
}
