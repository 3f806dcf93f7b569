#!/bin/sh
# Counts the primes below 100,000 in twenty chunks. What is done is kept in progress.txt, in the job's state folder,
# so that a new attempt continues instead of starting over.
set -eu

chunks=20
size=5000
progress="${RUNNER_STATE:-.}/progress.txt"
done_before=0
primes=0
if [ -f "$progress" ]; then
    read -r done_before primes <"$progress"
    echo "continuing after chunk $done_before ($primes primes so far)"
fi

chunk=$((done_before + 1))
# 75: run me again, nothing is wrong.
trap 'echo "asked to stop in chunk $chunk"; exit 75' TERM
while [ "$chunk" -le "$chunks" ]; do
    found=$(awk -v from="$(((chunk - 1) * size))" -v size="$size" 'BEGIN {
        for (n = from; n < from + size; n++) {
            prime = n > 1
            for (d = 2; d * d <= n; d++) if (n % d == 0) { prime = 0; break }
            count += prime
        }
        print count
    }')
    primes=$((primes + found))
    # Written aside and renamed, so that a kill never leaves half a file.
    echo "$chunk $primes" >"$progress.tmp"
    mv "$progress.tmp" "$progress"
    echo "chunk $chunk of $chunks: $primes primes"
    sleep 0.5
    chunk=$((chunk + 1))
done
echo "$primes primes below $((chunks * size))"
