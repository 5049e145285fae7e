/** The most important numbers of a page. */
export function Tiles({ tiles }: { tiles: readonly (readonly [label: string, value: string | number])[] }) {
  return (
    <dl class="tiles">
      {tiles.map(([label, value]) => (
        <div key={label} class="tile">
          <dt>{label}</dt>
          <dd>{value}</dd>
        </div>
      ))}
    </dl>
  );
}
